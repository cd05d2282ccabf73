"""One training of several stores, or one checkpoint: weights, evaluations, predictions, and where it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qexp.base.errors import UserError
from qexp.base.files import canonical_json, check_readable, hash_file
from qexp.merging.conflicts import Circumstances, Conflict, RowFile, keyed_conflicts, measured_conflicts
from qexp.merging.plan import Copies, Plan, Write, files_below, same_bytes, take_equal
from qexp.merging.stores import Store
from qexp.merging.units import METRICS, Key, Unit, journal_key, keyed_key, line_of, merge_keyed, merge_rows, units_of
from qexp.tracking.journal import read_rows
from qexp.tracking.record import MEASURED
from qexp.tracking.rounding import same_circumstances
from qexp.tracking.rows import Row

INFO, LOG, RESUME = Path("training.json"), Path("train.jsonl"), Path("last.pt")
# Of the training that got furthest alone: where it goes on, what stopped it.
OF_THE_FURTHEST = (RESUME, *map(Path, ("previous.pt", "next.pt", "PREEMPTED", "traceback.txt")))
_VARIANTS, _EXPORTS = "variants", "exports"
_OF_EVALUATIONS = ("predictions", "calibrations")  # <folder>/<variant key>/<epoch>.safetensors
_HASH = "weights_hash"  # of an epoch's log line, where its weights are kept
_SPEED = ("seconds", "images_per_s", _HASH)  # of that line; what was trained is in the others
_ROW_NEEDS: Mapping[str, Sequence[str]] = {_VARIANTS: MEASURED, _EXPORTS: ("asked", "digest", "time_ms")}
_KEYED_NEEDS = ("kind", "key", "values")


class Evaluations:
    """`variants/<key>.jsonl` of one training in one store, read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._units: dict[str, dict[Key, Unit]] = {}

    def of(self, variant_key: str) -> dict[Key, Unit]:
        """The evaluations of a variant."""
        if variant_key not in self._units:
            path = self._folder / _VARIANTS / f"{variant_key}.jsonl"
            self._units[variant_key] = units_of(read_rows(path, needs=MEASURED)[0], journal_key)
        return self._units[variant_key]

    def circumstances(self, row: Row) -> Circumstances | None:
        """What an evaluation of this training was computed on, by what is stored beside it; None where that is not known.

        Of evaluations that were made twice alike a merge keeps the time of one: another time is found by its metrics.
        """
        of_epoch = [unit.rows[0] for unit in self.of(row["variant_key"]).values() if unit.rows[0]["epoch"] == row["epoch"]]
        same = [stored for stored in of_epoch if stored["time_ms"] == row["time_ms"]]
        same += [stored for stored in of_epoch if all(repr(stored.get(name)) == repr(row.get(name)) for name in METRICS)]
        computed: Circumstances | None = next(iter(same), {}).get("computed")
        return computed

    def last(self, variant_key: str, epoch: int) -> Row | None:
        """The evaluation of an epoch that counts in this store."""
        rows = [unit.rows[-1] for unit in self.of(variant_key).values() if unit.rows[-1]["epoch"] == epoch]
        return rows[-1] if rows else None


def plan_folder(plan: Plan, where: Path, copies: Copies) -> None:
    """Plan the folder of a training or checkpoint.

    Args:
        plan: gets its files and conflicts.
        where: `trainings/<hash>` or `checkpoints/<hash>`.
        copies: the folders of the stores that have it.
    """
    plan.hashes.append(where.name)
    below, what = files_below(copies), f"training {where.name}" if where.parts[0] == "trainings" else f"checkpoint {where.name}"
    evaluations = {store.name: Evaluations(folder) for store, folder in copies}
    core = [] if INFO not in below else _plan_core(plan, where, copies, what)
    for path, files in below.items():
        kind = path.parts[0]
        name = f"{what}, {path}"
        if path in (INFO, LOG, *OF_THE_FURTHEST) and core:
            continue
        if kind in _OF_EVALUATIONS and len(path.parts) == 3 and path.suffix == ".safetensors":
            _take_evaluated(plan, where / path, files, evaluations, name)
        elif path.suffix == ".jsonl":
            _take_rows(plan, where, path, files, evaluations, what)
        elif path in OF_THE_FURTHEST:
            plan.runs.append(Write(where / path, max(file.read_bytes() for _, file in files)))  # no training.json tells
        else:
            take_equal(plan, plan.runs, where / path, files, name)
    plan.runs += core


def _plan_core(plan: Plan, where: Path, copies: Copies, what: str) -> list[Write]:
    """What says how far the training is, in the order in which it may be written; of the store that got furthest."""
    known = [_Training(store, folder) for store, folder in copies if (folder / INFO).is_file()]
    for other in known[1:]:
        if other.info.get("identity") != known[0].info.get("identity"):
            plan.conflicts.append(Conflict(f"{what}, identity", (known[0].store.name, "one"), (other.store.name, "another")))
    several = sum(one.info.get("status") != "done" and (one.folder / RESUME).is_file() for one in known) > 1
    order = sorted(known, key=lambda one: one.rank(by_state=several))
    log = _merge_logs(plan, order, what)
    folder = order[0].folder
    writes = [Write(where / LOG, log.encode())] if log else []
    writes += [Write(where / path, folder / path if (folder / path).is_file() else None) for path in OF_THE_FURTHEST]
    return [*writes, Write(where / INFO, folder / INFO)]


class _Training:
    """A training in one store: what `training.json` and `train.jsonl` say."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder, self.info = store, folder, _info(folder / INFO)
        self.log: dict[int, dict[str, Any]] = {row["epoch"]: row for row in read_rows(folder / LOG, needs=("epoch",))[0]}

    def rank(self, *, by_state: bool) -> tuple[object, ...]:
        """Smaller for one that got further: done, then by epochs and steps, then the one that began first.

        Args:
            by_state: read how far its resume state is, which takes torch.
        """
        done, reached = self.info.get("status") == "done", (max(self.log, default=0), 0)
        if by_state and not done:
            from qexp.engine.resume import ResumeFiles

            state = ResumeFiles(self.folder).load()
            reached = (0, 0) if state is None else (state.epoch, state.step)
        kept = [hash_file(self.folder / path) for path in OF_THE_FURTHEST if (self.folder / path).is_file()]
        return (not done, -reached[0], -reached[1], str(self.info.get("created")), canonical_json(self.info), kept)


def _merge_logs(plan: Plan, order: Sequence[_Training], what: str) -> str:
    """One line for each epoch: the first training's that has it, with the hash of its weights where only another kept them."""
    lines: dict[int, tuple[_Training, dict[str, Any]]] = {}
    for training in order:
        for epoch, line in training.log.items():
            first, known = lines.setdefault(epoch, (training, line))
            names = [name for name in {**known, **line} if name not in _SPEED and known.get(name) != line.get(name)]
            names += [name for name in (_HASH,) if name in known and name in line and known[name] != line[name]]
            if names:
                shown = [", ".join(f"{name} {one.get(name)}" for name in names[:2]) for one in (known, line)]
                twice = f"{what} was trained twice, epoch {epoch}"
                plan.conflicts.append(Conflict(twice, (first.store.name, shown[0]), (training.store.name, shown[1])))
                break
            lines[epoch] = (first, known | {name: value for name, value in line.items() if name not in known})
    return "".join(json.dumps(lines[epoch][1]) + "\n" for epoch in sorted(lines))


def _info(path: Path) -> dict[str, Any]:
    """`training.json` of a training."""
    check_readable(path)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError):
        remedy = f"Remove that training there: python -m qexp.trainings remove={path.parent.name}"
        raise UserError("from", path, allowed="a training.json that can be read", remedy=remedy) from None


def _take_evaluated(plan: Plan, path: Path, files: Copies, evaluations: Mapping[str, Evaluations], what: str) -> None:
    """Plan what is kept of an evaluation: of several, that of the evaluation that counts in the merged store, the latest."""
    if same_bytes(files):
        plan.runs.append(Write(path, files[0][1]))
        return
    variant_key, epoch = path.parts[-2], int(path.stem) if path.stem.isdigit() else -1
    rows = [(evaluations[store.name].last(variant_key, epoch), store, file) for store, file in files]
    known = [(row, store, file) for row, store, file in rows if row is not None]
    computed = [row.get("computed") for row, _, _ in known]
    alike = all(one is None or same_circumstances(one, computed[0] or {}) for one in computed)
    if len(known) < len(rows) or alike:
        take_equal(plan, plan.runs, path, files, what)
        return
    _, _, file = max(known, key=lambda one: (one[0]["time_ms"], json.dumps(one[0], sort_keys=True)))
    plan.runs.append(Write(path, file))


def _take_rows(plan: Plan, where: Path, path: Path, files: Copies, evaluations: Mapping[str, Evaluations], what: str) -> None:
    """Plan the union of files of rows: evaluations, measurements of exported files, numbers of an analysis."""
    kind = path.parts[0] if len(path.parts) > 1 else ""
    if kind == _VARIANTS:
        row_files = [RowFile(store.name, (own := evaluations[store.name]).of(path.stem), own.circumstances) for store, _ in files]
        plan.conflicts += measured_conflicts(row_files, f"evaluations of {what}")
        lines = merge_rows([file.units for file in row_files])
        plan.num_evaluations += len(lines)
    elif kind == _EXPORTS:
        lines = merge_rows([units_of(read_rows(file, needs=_ROW_NEEDS[kind])[0], journal_key) for _, file in files])
    else:
        lines = merge_analyses(plan, files, f"{what}, {path}")
    plan.runs.append(Write(where / path, "".join(f"{line}\n" for line in lines).encode()))


def merge_analyses(plan: Plan, files: Copies, what: str) -> list[str]:
    """The lines of the union of the numbers of an analysis; of files that differ by rounding one is taken wherever it can be.

    Args:
        plan: gets the conflicts.
        files: where the numbers are.
        what: their name in a conflict.
    """
    row_files, texts = [], []
    for store, file in files:
        rows = read_rows(file, needs=_KEYED_NEEDS)[0]
        of_float = (row["values"] for row in rows if isinstance(row["values"], dict))
        computed = next((values["computed"] for values in of_float if "computed" in values), None)
        row_files.append(RowFile(store.name, units_of(rows, keyed_key), lambda row, known=computed: known))  # type: ignore[misc]
        texts.append((canonical_json(computed), sorted(map(line_of, rows))))
    plan.conflicts += keyed_conflicts(row_files, what)
    order = sorted(range(len(files)), key=texts.__getitem__, reverse=True)  # by content: in whichever order files are given
    return merge_keyed([row_files[number].units for number in order])
