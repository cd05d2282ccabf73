"""Trainings on disk, addressed by what decides their weights.

    <runs_dir>/trainings/<hash>/training.json            identity, configuration, versions, status
                               /epochs/0001.safetensors  weights after each epoch that is kept
                               /last.pt, previous.pt     what a resume needs; gone once the training is done
                               /PREEMPTED                when and where a signal stopped it; gone once it goes on
                               /train.jsonl              one line per epoch: loss, learning rate, seconds, hash of its weights
    <runs_dir>/.locks/<hash>.lock

Every file appears whole or not at all, so a crash at any moment leaves a state from which the same command goes on. The order
of an epoch is: weights, log line, resume state, so that an epoch that counts as done has all of it. One process writes (rank 0).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor

from qexp.base.console import print_main
from qexp.base.errors import UserError, nearest
from qexp.base.faults import fault_point
from qexp.base.files import check_readable, hash_file, names_in, write_text_atomic
from qexp.base.text import MIB
from qexp.engine import epoch_file
from qexp.engine.resume import ResumeFiles
from qexp.engine.state import FitState

_HASH = "weights_hash"  # in the log, of the file of an epoch's weights


class Training:
    """One training's folder. Making the object touches nothing on disk."""

    def __init__(self, folder: Path, lock_file: Path) -> None:
        self.folder, self.lock_file, self.hash = folder, lock_file, folder.name
        self._resume, self._log, self._preempted = ResumeFiles(folder), folder / "train.jsonl", folder / "PREEMPTED"

    def begin(
        self,
        *,
        identity: Mapping[str, object],
        config: Mapping[str, object],
        versions: Mapping[str, str],
        epochs: int,
        world_size: int = 1,
        start: FitState | None = None,
    ) -> None:
        """Write `training.json`, of which a resume keeps the first one's `created`, and note how many ranks go on from where.

        Args:
            identity: what the training's hash is made of.
            config: the job's settings, for the list of trainings and for people.
            versions: of the packages, for people.
            epochs: planned.
            world_size: ranks from here on.
            start: where it goes on; None at the beginning.
        """
        info = self.info
        if not info:
            created = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"hash": self.hash, "created": created, "status": "running", "epochs": epochs}
            info = {**about, "identity": identity, "config": config, "versions": versions}
        place = {"epoch": start.epoch, "step": start.step} if start is not None else {"epoch": 0, "step": 0}
        # Stretches that began behind this place were lost, and done again.
        before = [part for part in info.get("ranks", []) if (part["epoch"], part["step"]) < (place["epoch"], place["step"])]
        if not before or before[-1]["world_size"] != world_size:
            before.append({**place, "world_size": world_size})
        if info.get("ranks") != before:
            self._write_info({**info, "ranks": before})
        self._preempted.unlink(missing_ok=True)

    def world_sizes(self, epoch: int) -> tuple[int, ...]:
        """Numbers of ranks that took part in the steps up to the end of `epoch`, in the order of time, without repetition."""
        sizes = [part["world_size"] for part in self.info.get("ranks", []) if part["epoch"] < epoch]
        return tuple(dict.fromkeys(sizes))

    @property
    def info(self) -> dict[str, Any]:
        """The content of `training.json`, empty where there is none."""
        path = self.folder / "training.json"
        check_readable(path)
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")).items())
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError):
            allowed = f"one whose {path} can be read"
            raise UserError("training", self.hash, allowed=allowed, remedy=self._afresh) from None

    @property
    def _afresh(self) -> str:
        return f"Remove it: python -m qexp.trainings remove={self.hash}"

    def _write_info(self, info: Mapping[str, object]) -> None:
        write_text_atomic(self.folder / "training.json", json.dumps(info, indent=2, sort_keys=True) + "\n")

    def save_epoch(self, state: FitState, log: Mapping[str, object], *, keep: bool) -> None:
        """Store an epoch: its weights if it is kept, the resume state, and a line of the log.

        Args:
            state: of the epoch that ended.
            log: numbers of the epoch for `train.jsonl`; `epoch` is added.
            keep: `TrajectorySettings.keeps(epoch, epochs)`.

        Raises:
            OSError: the disk is full, say; what was stored before is intact.
        """
        if keep:
            path = self._epoch_file(state.epoch)
            epoch_file.save(path, state.evaluated)
            fault_point("epoch.weights")
            log = {**log, _HASH: hash_file(path)}
        lines = [line for line in self.log() if line["epoch"] < state.epoch] + [{"epoch": state.epoch, **log}]
        write_text_atomic(self._log, "".join(json.dumps(line) + "\n" for line in lines))
        fault_point("epoch.log")
        self._resume.save(state)

    def save_state(self, state: FitState) -> None:
        """Store what a resume needs, from within an epoch; raises as `save_epoch`."""
        self._resume.save(state)

    def mark_preempted(self, by: str) -> None:
        """Write `PREEMPTED`: what stopped the training, when, and the place it goes on from."""
        state = self.resume_state()
        where = state.place if state is not None else "from the beginning"
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_text_atomic(self._preempted, f"{by} at {when}; the same command goes on {where}\n")

    def finish(self) -> None:
        """Mark the training as done, and drop the resume states, which nothing needs any more."""
        assert epoch_file.is_whole(self._epoch_file(self.info["epochs"])), "a training ends with its last epoch stored"
        self._write_info({**self.info, "status": "done"})
        self._resume.drop()

    @property
    def is_complete(self) -> bool:
        """True if nothing is left to train and the last epoch's weights are there."""
        info = self.info
        return info.get("status") == "done" and epoch_file.is_whole(self._epoch_file(info["epochs"]))

    def epochs(self) -> list[int]:
        """Epochs whose weights are kept and whole, ascending."""
        stems = (name[:-12] for name in names_in(self.folder / "epochs") if name[0] != "." and name.endswith(".safetensors"))
        return [int(stem) for stem in stems if epoch_file.is_whole(self._epoch_file(int(stem)))]

    def load_epoch(self, epoch: int) -> dict[str, Tensor]:
        """The network's state dict after `epoch`, on the CPU; the resume state serves where an epoch is not kept.

        Raises:
            UserError: it is not stored, or its file is not the one that was written.
        """
        path = self._epoch_file(epoch)
        if epoch_file.is_whole(path):
            written = {line["epoch"]: line.get(_HASH) for line in self.log()}.get(epoch)  # stores of before know none
            if written not in (None, hash_file(path)):
                remedy = f"{path} was changed after it was written, and with it what the stored numbers are of. {self._afresh}"
                raise UserError("training", self.hash, allowed="one whose weights are as they were stored", remedy=remedy)
            return load_file(path)
        state = self._resume.find(epoch)
        if state is not None:
            return state.evaluated
        stored = ", ".join(map(str, self.epochs())) or "none"
        raise UserError("epoch", epoch, allowed=f"a stored epoch of training {self.hash}: {stored}")

    def log(self) -> list[dict[str, Any]]:
        """The lines of `train.jsonl`, one per epoch, ascending."""
        if not self._log.exists():
            return []
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]

    def resume_state(self) -> FitState | None:
        """Where to go on: the last epoch's state, or the one before if that is damaged, or None for the beginning."""
        return self._resume.load()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the training alone; says so while it waits. The lock of a process that died is free."""
        self.lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print_main(f"Waiting for another process that works on training {self.hash}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def discard(self) -> None:
        """Forget all that is stored, at one stroke: a half-removed training never looks like one."""
        if self.folder.exists():
            trash = self.folder.parent / f".trash.{self.hash}.{os.getpid()}.{time.time_ns()}"  # on the same disk
            os.replace(self.folder, trash)
            shutil.rmtree(trash)

    @property
    def is_preempted(self) -> bool:
        """True if a signal stopped it and nobody went on since."""
        return self._preempted.exists()

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / "epochs" / f"{epoch:04d}.safetensors"


class TrajectoryStore:
    """All trainings under one `runs_dir`."""

    def __init__(self, runs_dir: Path | str) -> None:
        self.runs_dir = Path(runs_dir)
        self.root = self.runs_dir / "trainings"

    def open(self, training_hash: str) -> Training:
        """The training of that hash, stored or not."""
        return Training(self.root / training_hash, self.runs_dir / ".locks" / f"{training_hash}.lock")

    def find(self, prefix: str) -> Training:
        """The stored training whose hash begins so.

        Raises:
            UserError: none or several do.
        """
        hashes = self._hashes()
        matches = [name for name in hashes if name.startswith(prefix)]
        if len(matches) != 1:
            what = "the hash of a stored training" if not matches else f"one of {', '.join(matches)}"
            raise UserError("training", prefix, allowed=what, remedy=nearest(prefix, hashes))
        return self.open(matches[0])

    def summaries(self) -> list[dict[str, Any]]:
        """One row per stored training, oldest first: hash, model, data, method (`lsq 4 bits`), epochs_done, epochs, ..."""
        return sorted(map(self._summary, self._hashes()), key=lambda row: str(row["created"]))

    def identities(self) -> dict[str, dict[str, Any]]:
        """Hash -> what it is made of, of the stored trainings whose `training.json` can be read."""
        known = {}
        for name in self._hashes():
            with suppress(UserError):
                known[name] = self.open(name).info.get("identity", {})
        return known

    def _summary(self, name: str) -> dict[str, Any]:
        """The row of one training; of a damaged one its name and size."""
        training = self.open(name)
        shown: dict[str, Any] = {"model": "", "data": "", "method": "", "created": "", "status": "damaged"}
        with suppress(UserError, ValueError, AttributeError, KeyError, TypeError):
            info, log = training.info, training.log()
            config, qat = info.get("config", {}), info.get("identity", {}).get("qat")
            shown = {
                "model": config.get("model", {}).get("name", ""),
                "data": config.get("data", {}).get("name", ""),
                "method": f"{qat['name']} {qat['bits']} bits" if qat else "float",
                "epochs_done": log[-1]["epoch"] if log else 0,
                "epochs": info.get("epochs", 0),
                "created": info.get("created", ""),
                "status": "preempted" if training.is_preempted else info.get("status", "damaged"),
            }
        return {"hash": name, "epochs_done": 0, "epochs": 0, "size_mib": training.size_bytes / MIB, **shown}

    def remove(self, prefix: str) -> str:
        """Delete a stored training; returns its hash.

        Raises:
            UserError: it is not there, or a process works on it.
        """
        training = self.find(prefix)
        training.lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(training.lock_file, timeout=0):
                training.discard()
        except Timeout:
            raise UserError("training", training.hash, allowed="a training that no process works on") from None
        return training.hash

    def _hashes(self) -> list[str]:
        return [name for name in names_in(self.root) if not name.startswith(".") and (self.root / name).is_dir()]
