"""What travels through a sweep: a command as Hydra composed it, a job as asked for, jobs merged into one training; torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qexp.config.root import Config
from qexp.config.sweeper import SearchSettings
from qexp.config.validate import validate
from qexp.sweep.check_read import why_unread
from qexp.tracking.record import Sweep

Outcomes = Generator[tuple[int, Exception | None]]  # number of each merged job and why it failed, in the order in which they end


Choices = tuple[str, ...] | tuple[float, float]  # of a swept key: its values as typed, or the ends of an interval
Pick = Mapping[str, str]  # swept key -> its value as typed


@dataclass(frozen=True)
class Search:
    """What `hydra/sweeper=optuna` chooses from.

    Args:
        settings: how.
        space: swept key -> what it may be.
        compose: the jobs of some picks, as `Composed.jobs`.
    """

    settings: SearchSettings
    space: Mapping[str, Choices]
    compose: Callable[[Sequence[Pick]], tuple[Mapping[str, object], ...]]


@dataclass(frozen=True)
class Composed:
    """A command as Hydra composed it; nothing of it is validated.

    Args:
        jobs: resolved values, one mapping per job.
        launcher: values of `hydra.launcher`.
        folder: for the files of the sweep itself, such as the output of its workers.
        is_sweep: true with `-m`, where the launcher's settings are read.
        search: where jobs are chosen as they go; `jobs` then has each value of each key once, to be checked before any is run.
    """

    jobs: tuple[Mapping[str, object], ...]
    launcher: Mapping[str, object]
    folder: Path
    is_sweep: bool
    search: Search | None = None


@dataclass(frozen=True)
class AskedJob:
    """One job as asked for, right or wrong: what the journal says of it.

    Args:
        key: hash of all that decides which numbers it asks for.
        asked: what tells it from the other jobs of its sweep, as typed.
        runs_dir, name: of its experiment; None where the values are no texts, and no journal can be named.
        fresh: it asks for a training that begins anew.
        plan_only: it asks for a plan alone.
    """

    key: str
    asked: str
    runs_dir: str | None
    name: str | None
    fresh: bool = False
    plan_only: bool = False

    @property
    def place(self) -> tuple[str, str] | None:
        """(runs_dir, name), which names the journal; None where there can be none."""
        return None if self.runs_dir is None or self.name is None else (self.runs_dir, self.name)


@dataclass(frozen=True)
class MergedJob:
    """Jobs that share a training, checked: run as one, in this process, on other ranks or in a worker.

    Args:
        configs: of the jobs; what trains is the same in all.
        asked: the same jobs for the journal; none where nobody asked for the training by itself.
        sweep: where they come from.
        data_hash: of the data that the leader loaded; whoever runs them must have the same. Not compared where empty.
    """

    configs: tuple[Config, ...]
    asked: tuple[AskedJob, ...]
    sweep: Sweep
    data_hash: str = ""

    @property
    def told_apart(self) -> str:
        """What tells its jobs from those of the sweep's other trainings, as typed: `seed=1`."""
        words = [job.asked.split() for job in self.asked]
        told = [word for word in words[0] if all(word in other for other in words)] if words else []
        config, verb = self.configs[0], self.sweep.verb
        return " ".join(word for word in told if not why_unread(word.partition("=")[0], config, verb))

    def to_json(self) -> str:
        """As text, for the ranks of another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MergedJob:
        """The job that `to_json` wrote; its settings were checked there."""
        values = json.loads(text)
        return cls(
            configs=tuple(validate(config) for config in values["configs"]),
            asked=tuple(AskedJob(**asked) for asked in values["asked"]),
            sweep=Sweep(**values["sweep"]),
            data_hash=values["data_hash"],
        )
