"""Hydra composes the jobs of a command, each once. It runs none of them.

Hydra's own way, a job run within its `run_job` for every combination, was tried and left: a sweep went from the entry to the
launcher, from there to the sweep and back by way of the launcher and the entry for each training; and what ran in workers ran
outside Hydra all the same.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from qexp.sweep.types import Composed


def conf_dir() -> Path:
    """The folder of YAML values: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def compose(config_name: str) -> Composed | None:
    """Let Hydra read `sys.argv` and compose; None where it was asked for something else, such as `--help`.

    Args:
        config_name: of the root file in `conf/`.

    Raises:
        HydraException, OmegaConfBaseException: the command line or a file of values is wrong.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving with 1
    composed: list[Composed] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
    def keep(config: DictConfig | Composed) -> None:
        if isinstance(config, Composed):  # by qexp's launcher, of a whole sweep
            composed.append(config)
            return
        own = HydraConfig.get()
        composed.append(Composed((resolved(config),), resolved(own.launcher), Path(own.runtime.output_dir), is_sweep=False))

    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        _print_help(keep)
    else:
        keep()
    return composed[0] if composed else None


def resolved(config: DictConfig) -> dict[str, object]:
    """The values of a job with all interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict), "a job is a mapping"
    return {str(key): value for key, value in values.items()}


def _print_help(hydra_main: Callable[[], None]) -> None:
    """Hydra's help without the `_base` files, which hold the common values of a group and are no choice."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            hydra_main()
    finally:
        print(text.getvalue().replace(" _base, ", " "), end="")
