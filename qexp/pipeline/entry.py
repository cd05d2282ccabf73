"""The way in: `python -m qexp.train`, `evaluate`, `analyze` and `export`, alone or under torchrun; torch-free until a job runs.

Only rank 0 runs Hydra; the other ranks wait for resolved configurations. Hydra on every rank was tried and rejected: sweep
folders diverge, and a rank that fails alone pairs its next collective with another job's, which gives wrong numbers in silence.

Exit codes: 0 done, 1 some job failed, 2 bad input and nothing started, 143 stopped by SIGTERM, 130 by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from qexp.base.console import complain
from qexp.base.errors import UserError, UserErrors
from qexp.base.files import SaveError
from qexp.base.preemption import Preempted, listening
from qexp.pipeline.check import Sweep, check_arguments, hydra_error

_SWEEP: Sweep | None = None  # of this process; one command is one sweep


class JobsFailed(RuntimeError):
    """Some jobs of a sweep failed; each has said why."""


class RankFailed(RuntimeError):
    """A rank failed in a job; the process group cannot be used again."""


def conf_dir() -> Path:
    """The folder of YAML values: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def sweep() -> Sweep:
    """The sweep this process runs."""
    assert _SWEEP is not None
    return _SWEEP


def clean_arguments(arguments: Sequence[str]) -> list[str]:
    """What Hydra shall see: without the rank that torch.distributed.launch adds, and with `-m` and `--option=value` in front.

    Overrides on both sides of an option fail in argparse, so options go first.

    >>> clean_arguments(["--local-rank=1", "bits=4,8", "-m", "seed=1"])
    ['-m', 'bits=4,8', 'seed=1']
    """
    kept = [text for text in arguments if not text.startswith(("--local-rank", "--local_rank"))]
    flags = [text for text in kept if text in ("-m", "--multirun")]
    options = [text for text in kept if text.startswith("--") and "=" in text]
    return flags[:1] + options + [text for text in kept if text not in ("-m", "--multirun", *options)]


def main(verb: str, config_name: str) -> int:
    """Run one command line; returns the exit code."""
    global _SWEEP
    arguments = clean_arguments(sys.argv[1:])
    stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(3)}"  # two machines may share a second and a process number
    command = shlex.join(["python", "-m", f"qexp.{verb}", *arguments])
    _SWEEP = Sweep(sweep=stamp, command=command, verb=verb)
    sys.argv[1:] = arguments
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _guarded(config_name, arguments, verb)
    if verb in ("analyze", "export"):
        complain("qexp: nothing was started.", f"  qexp.{verb} runs in one process: leave torchrun away.")
        return 2
    from qexp.pipeline import ranks

    device = next((text.partition("=")[2] for text in arguments if text.startswith("device=")), "auto")
    if int(os.environ["RANK"]) > 0:
        return ranks.follow(device)
    ranks.lead(device)
    code = 1
    try:
        code = _guarded(config_name, arguments, verb)
    finally:
        ranks.dismiss(code)
    return code


def _guarded(config_name: str, arguments: Sequence[str], verb: str) -> int:
    """Run Hydra and say every error of the user's without a traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving with 1
    try:
        check_arguments(arguments, verb)
        with listening():
            _run_hydra(config_name)
    except (UserErrors, UserError) as error:
        complain("qexp: nothing was started.", *(f"  {line}" for line in str(error).splitlines()))
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        complain("qexp: nothing was started.", f"  {hydra_error(error)}")
        return 2
    except (JobsFailed, RankFailed) as error:
        complain(f"qexp: {error}")
        return 1
    except SaveError as error:
        complain(f"qexp: {error}")
        return 1
    except BrokenPipeError:  # `--help | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Preempted) as stop:
        asked = stop if isinstance(stop, Preempted) else Preempted(signal.SIGINT)
        complain(f"qexp: {asked}. The same command goes on where this one stopped.")
        return asked.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _run_hydra(config_name: str) -> None:
    import hydra

    raised: list[BaseException] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
    def task(values) -> None:  # noqa: ANN001
        try:
            run_task(values)
        except Exception as error:  # Hydra would print a line of its own; a merged job's launcher wants it raised
            if "jobs" in values:
                raise
            raised.append(error)

    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        _print_help(task)
    task()
    if raised:
        raise raised[0]


def _print_help(task: Callable[[], None]) -> None:
    """Hydra's help without the `_base` files, which hold the common values of a group and are no choice."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            task()
    finally:
        print(text.getvalue().replace(" _base, ", " "), end="")


def run_task(values) -> None:  # noqa: ANN001
    """Hydra's task: one job, or a merged one whose `jobs` the launcher filled in."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from qexp.pipeline import launchers, story

    resolved = OmegaConf.to_container(values, resolve=True, throw_on_missing=True)
    if sweep().verb == "analyze":
        from qexp.pipeline import analyze

        analyze.run(resolved, sweep())
    elif "jobs" in resolved:
        story.run_group(resolved["jobs"], sweep())
    else:
        launchers.check_single(OmegaConf.to_container(HydraConfig.get().launcher, resolve=True))
        run_here = partial(launchers.in_turn, lambda positions: story.run_group([resolved], sweep()))
        story.run_sweep([resolved], sweep(), launch=run_here)
