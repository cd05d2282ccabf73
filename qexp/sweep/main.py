"""The way in: `python -m qexp.train`, `evaluate`, `analyze` and `export`, alone or under torchrun.

Torch is loaded once Hydra has composed the jobs and their settings are right (under torchrun by each rank at once), not for
`--help`, an unknown key, a value beyond its bounds or a file that is not there.

Only rank 0 runs Hydra; the other ranks wait for checked jobs. Hydra on every rank was tried and rejected: sweep folders diverge,
and a rank that fails alone pairs its next collective with another job's, which gives wrong numbers in silence.

Exit codes: 0 done, 1 some job failed, 2 bad input, 143 stopped by SIGTERM, 130 by Ctrl-C. They say what was
done, not what was read: a command whose output nobody reads any more goes on.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qexp.base.allocator import keep_freed_memory
from qexp.base.console import report_error, report_stop, speaking, without_json_flag
from qexp.base.errors import JobsFailed, RankFailed, UserError, UserErrors
from qexp.base.files import SaveError
from qexp.base.memory import leave_memory_to_the_system
from qexp.base.orphans import end_with
from qexp.base.preemption import Preempted, listening
from qexp.base.progress import phase
from qexp.base.progress_shown import shown
from qexp.base.text import without_passwords
from qexp.base.user_code import exits_are_errors
from qexp.sweep.arguments import check_arguments, clean_arguments, quote_places, typed_settings
from qexp.sweep.types import Composed
from qexp.tracking.record import Sweep

if TYPE_CHECKING:
    from qexp.config.root import Config
    from qexp.sweep.jobs import JobLog
    from qexp.sweep.ranks import Ranks

# What a command does with its jobs: as Hydra composed them, checked, and what writes down what becomes of them.
Run = Callable[[Composed, Sequence["Config"], "JobLog", "Ranks"], None]


def run_command_line(verb: str, config_name: str, run: Run | None = None) -> int:
    """Run one command line.

    Args:
        verb: `train`, `evaluate`, `analyze` or `export`.
        config_name: of its root file in `conf/`.
        run: what is done with its jobs; None runs them as a sweep.

    Returns:
        The exit code.
    """
    if verb != "export":  # whose latencies are those of a process that has malloc's defaults
        keep_freed_memory()
    leave_memory_to_the_system()
    given, as_json = without_json_flag(sys.argv[1:])
    with speaking(as_json=as_json):
        sys.argv[1:] = quote_places(clean_arguments(given))
        return _run_anywhere(verb, config_name, run)


def _run_anywhere(verb: str, config_name: str, run: Run | None) -> int:
    """Run a command line in this process, or with the other ranks; returns the exit code."""
    arguments = sys.argv[1:]
    stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(3)}"  # two machines may share a second and a process number
    command = shlex.join(["python", "-m", f"qexp.{verb}", *map(without_passwords, arguments)])
    sweep = Sweep(sweep=stamp, command=command, verb=verb)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # else a shell may have started the rank, and left
        end_with(os.getppid())
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _run(config_name, arguments, sweep, run, None)
    if verb in ("analyze", "export"):
        text = f"qexp.{verb} runs in one process: leave torchrun away."
        report_error(text, "qexp: nothing was started.", f"  {text}", exit_code=2)
        return 2
    from qexp.sweep import ranks

    device = next((text.partition("=")[2] for text in arguments if text.startswith("device=")), "auto")
    if int(os.environ["RANK"]) > 0:
        from qexp.sweep.group import Resources, run_received

        return ranks.serve(device, partial(run_received, resources=Resources()))
    leader, code = ranks.Leader(device), 1
    try:
        code = _run(config_name, arguments, sweep, run, leader)
    finally:
        leader.shutdown(code)
    return code


def _run(config_name: str, arguments: Sequence[str], sweep: Sweep, run: Run | None, ranks: Ranks | None) -> int:
    """Compose and run, and say every error of the user's without a traceback; returns the exit code."""
    from qexp.sweep.compose import compose

    try:
        typed = typed_settings(arguments)
        check_arguments(typed, sweep.verb)
        with listening(), shown():
            with phase("reading the configuration"):
                composed = compose(config_name)
            if composed is not None:
                _run_composed(composed, sweep, typed, run, ranks)
    except (UserErrors, UserError) as error:
        lines, code = ["qexp: nothing was started.", *(f"  {line}" for line in str(error).splitlines())], 2
        report_error(error, *lines, exit_code=code)
    except (JobsFailed, RankFailed, SaveError) as error:
        code = 1 if isinstance(error, SaveError) else error.exit_code
        report_error(error, f"qexp: {error}", exit_code=code)
    except (KeyboardInterrupt, Preempted) as stop:
        code = report_stop(stop)
    except Exception as error:
        code = 1
        report_error(error, "".join(traceback.format_exception(error)), exit_code=code)
    else:
        code = 0
    return code


def _run_composed(composed: Composed, sweep: Sweep, typed: Mapping[str, str], run: Run | None, ranks: Ranks | None) -> None:
    quiet = any(values.get("quiet") is True for values in composed.jobs)
    with speaking(quiet=quiet), exits_are_errors():
        configs, log = _checked(composed, sweep, typed)
        with phase("loading"):
            from qexp.sweep.ranks import Alone
            from qexp.sweep.run import run_command
            from qexp.sweep.search import run_search
        (run or (run_command if composed.search is None else run_search))(composed, configs, log, ranks or Alone())


def _checked(composed: Composed, sweep: Sweep, typed: Mapping[str, str]) -> tuple[list[Config], JobLog]:
    """The jobs of a command, checked before torch is loaded: a mistake need not wait for that.

    Raises:
        UserErrors, UserError: something is wrong with the settings of some job.
    """
    from qexp.config.search_space import candidates
    from qexp.sweep.check import check
    from qexp.sweep.check_read import check_read
    from qexp.sweep.jobs import JobLog, ask_for

    if sweep.verb == "analyze" and composed.search is not None:
        allowed = "basic in qexp.analyze and qexp.export"
        raise UserError("hydra/sweeper", "optuna", allowed=allowed, remedy="It chooses among evaluated copies.")
    if sweep.verb == "analyze" and composed.is_sweep:
        remedy = "Give each key one value, without -m."
        raise UserError("-m", "given", allowed="a single job for qexp.analyze", remedy=remedy)
    log = JobLog(ask_for(composed.jobs), sweep)
    with log.refusals():
        configs = check(composed.jobs, sweep.verb)
    # A setting of task=shrink has to be read by one of its candidates.
    shrunk = (one.config for config in configs if config.task == "shrink" for one in candidates(config))
    check_read([config for config in configs if config.task != "shrink"] + [*shrunk], typed, sweep.verb)
    return configs, log
