"""Settings of the launcher, `hydra.launcher.*`: where the trainings of a sweep run. Torch-free."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qexp.base.checks import check_range
from qexp.base.errors import UserError, UserErrors, choose, nearest

_LOCAL = ("n_jobs", "timeout_min", "tasks_per_node", "gpus_per_node", "signal_delay_s", "max_num_timeout", "setup")
_SLURM = ("nodes", "cpus_per_task", "mem_gb", "partition", "account", "qos", "additional_parameters")
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
        timeout_min: time limit of a job, minutes. signal_delay_s: how long before it the job is told to save, seconds.
        max_num_timeout: how often a job that reached its limit is queued again.
        nodes: of one training. tasks_per_node: processes of one training on each node, one per GPU where there are GPUs.
        gpus_per_node, cpus_per_task, mem_gb (per node): what a job asks for.
        partition, account, qos: Slurm's. additional_parameters: any other option of sbatch, such as {constraint: a100}.
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
    additional_parameters: dict[str, Any] = field(default_factory=dict)
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


DEFAULTS: dict[str, Any] = {}  # of every setting, by name
DEFAULTS.update({item.name: getattr(LauncherSettings(), item.name) for item in fields(LauncherSettings)})


def launcher_settings(values: Mapping[str, object]) -> LauncherSettings:
    """Validate `hydra.launcher`, and that what it asks for can work here.

    Raises:
        UserErrors: a key, type or range is wrong. UserError: submitit or Slurm is missing, or torchrun started this process.
    """
    values = {key: value for key, value in values.items() if key != "_target_"}  # Hydra's
    known = [item.name for item in fields(LauncherSettings)]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserErrors(_error(key, values[key], known, nearest(key, known)) for key in unknown)
    try:
        settings = TypeAdapter(LauncherSettings).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UserErrors(
            item["ctx"]["error"]
            if isinstance(item.get("ctx", {}).get("error"), UserError)
            else _error(".".join(map(str, item["loc"])), item["input"], item["msg"].removeprefix("Input should be "))
            for item in error.errors()
        ) from None
    _check_place(settings)
    return settings


def _error(key: str, value: object, allowed: str | Iterable[str] = "", remedy: str = "") -> UserError:
    return UserError(f"hydra.launcher.{key}", value, allowed=allowed, remedy=remedy)


def _check_place(settings: LauncherSettings) -> None:
    inner = settings.inner
    if inner != "basic" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        remedy = "These processes are one training already. Start the command without torchrun"
        remedy += "; hydra.launcher.tasks_per_node gives a job its ranks." if inner.startswith("submitit") else "."
        raise _error("inner", inner, "basic under torchrun", remedy)
    if inner.startswith("submitit") and importlib.util.find_spec("submitit") is None:
        raise _error("inner", inner, "basic or joblib without submitit", "pip install 'qexp[slurm]' brings it.")
    if inner == "submitit_slurm" and shutil.which("srun") is None:
        raise _error("inner", inner, "another one where there is no Slurm", "Start it where srun is found, on a login node say.")


def check_single(settings: LauncherSettings) -> None:
    """Refuse settings of the launcher in a command without `-m`, which has one job and would not read them."""
    if settings.inner != "basic":
        raise _error("inner", settings.inner, "basic without -m", "Add -m.")
