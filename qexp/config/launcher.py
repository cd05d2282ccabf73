"""Settings of the launcher, `hydra.launcher.*`: where the trainings of a sweep run. Torch-free."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from pydantic import TypeAdapter, ValidationError

from qexp.base.checks import check_range
from qexp.base.errors import UserError, UserErrors, as_user_errors, choose, nearest

_LOCAL = ("n_jobs", "timeout_min", "tasks_per_node", "gpus_per_node", "signal_delay_s", "max_num_timeout", "setup")
_SLURM = ("nodes", "cpus_per_task", "mem_gb", "partition", "account", "qos", "additional_parameters")
_PREFIX = "hydra.launcher."
# Inner launcher -> the settings that it reads; any other that is set is a mistake.
INNER: dict[str, tuple[str, ...]] = {
    "basic": (),
    "joblib": ("n_jobs",),
    "submitit_local": _LOCAL,
    "submitit_slurm": (*_LOCAL, *_SLURM),
}


@dataclass(frozen=True, kw_only=True)
class LauncherSettings:
    """Where the trainings of a sweep run.

    Args:
        inner: `basic` (one after the other in this process), `joblib` (in worker processes here), `submitit_local` (as submitit
            jobs here) or `submitit_slurm` (as Slurm jobs).
        n_jobs: how many run at a time; -1 is one per core here, and no limit on Slurm.
        timeout_min: time limit of a job, minutes.
        signal_delay_s: how long before its limit a job gets the signal to save, seconds.
        max_num_timeout: how often a job that reached its limit is queued again.
        nodes: of one training.
        tasks_per_node: processes of one training on each node, one per GPU where there are GPUs.
        gpus_per_node: GPUs of a job on each node.
        cpus_per_task: CPU cores of each process.
        mem_gb: memory of a job on each node, GB.
        partition: Slurm's partition.
        account: Slurm's account.
        qos: Slurm's quality of service.
        additional_parameters: any other option of sbatch, such as {constraint: a100}.
        setup: lines of shell that run before the job, such as "module load cuda".
    """

    inner: str = "basic"
    n_jobs: int = -1
    timeout_min: int = 1440
    signal_delay_s: int = 120
    max_num_timeout: int = 3
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    additional_parameters: dict[str, object] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the ranges, and that nothing is set which the inner launcher would not read."""
        choose("hydra.launcher.inner", self.inner, INNER)
        if self.n_jobs != -1:
            check_range("hydra.launcher.n_jobs", self.n_jobs, 1)
        for key in ("timeout_min", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task"):
            check_range(f"hydra.launcher.{key}", getattr(self, key), 1)
        for key in ("signal_delay_s", "max_num_timeout"):
            check_range(f"hydra.launcher.{key}", getattr(self, key), 0)
        check_range("hydra.launcher.mem_gb", self.mem_gb, 0, open_low=True)
        for key, default in DEFAULTS.items() if DEFAULTS else ():
            if key != "inner" and key not in INNER[self.inner] and getattr(self, key) != default:
                readers = [name for name, keys in INNER.items() if key in keys]
                remedy = f"hydra.launcher.inner={self.inner} does not read it; {', '.join(readers)} would."
                raise UserError(f"hydra.launcher.{key}", getattr(self, key), remedy=remedy)


DEFAULTS: dict[str, object] = {}  # of every setting, by name
DEFAULTS.update({setting.name: getattr(LauncherSettings(), setting.name) for setting in fields(LauncherSettings)})


def unknown_setting(key: str, value: object) -> UserError | None:
    """What to say of a key of the launcher that it does not have; None for those that it has, and for others' keys.

    Args:
        key: dotted, `hydra.launcher.n_job`.
        value: as given.
    """
    name = key.removeprefix(_PREFIX).partition(".")[0]
    if not key.startswith(_PREFIX) or name in ("_target_", *DEFAULTS):
        return None
    return UserError(key, value, allowed=list(DEFAULTS), remedy=nearest(name, DEFAULTS))


def launcher_settings(values: Mapping[str, object]) -> LauncherSettings:
    """Validate `hydra.launcher`, and that what it asks for can work here.

    Raises:
        UserErrors: a key, type or range is wrong.
        UserError: submitit or Slurm is missing, or torchrun started this process.
    """
    values = {key: value for key, value in values.items() if key != "_target_"}  # Hydra's
    unknown = [error for key, value in values.items() if (error := unknown_setting(_PREFIX + key, value)) is not None]
    if unknown:
        raise UserErrors(unknown)
    try:
        settings = TypeAdapter(LauncherSettings).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UserErrors(as_user_errors(error, prefix=_PREFIX)) from None
    _check_machine(settings)
    return settings


def _check_machine(settings: LauncherSettings) -> None:
    """Refuse an inner launcher that cannot work in this process or on this machine."""
    key, inner = f"{_PREFIX}inner", settings.inner
    if inner != "basic" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        remedy = "These processes are one training already. Start the command without torchrun"
        remedy += "; hydra.launcher.tasks_per_node gives a job its ranks." if inner.startswith("submitit") else "."
        raise UserError(key, inner, allowed="basic under torchrun", remedy=remedy)
    if inner.startswith("submitit") and importlib.util.find_spec("submitit") is None:
        remedy = "pip install 'qexp[slurm]' brings it."
        raise UserError(key, inner, allowed="basic or joblib without submitit", remedy=remedy)
    if inner == "submitit_slurm" and shutil.which("srun") is None:
        remedy = "Start it where srun is found, on a login node say."
        raise UserError(key, inner, allowed="another one where there is no Slurm", remedy=remedy)


def check_single(settings: LauncherSettings) -> None:
    """Refuse settings of the launcher in a command without `-m`, which has one job and would not read them."""
    if settings.inner != "basic":
        raise UserError(f"{_PREFIX}inner", settings.inner, allowed="basic without -m", remedy="Add -m.")
