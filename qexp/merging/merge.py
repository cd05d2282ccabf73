"""Stores of several machines become one: planned as a whole, then written file by file.

The union is a function of what the stores hold, `into` among them, so its order does not matter, and a merge that was killed is
finished by the same command: what it has written is part of the union by then. Nothing is written where two stores disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from qexp.base.errors import UserError, UserErrors
from qexp.base.files import canonical_json, discard_partials, hash_file, names_in, write_bytes_atomic
from qexp.merging.conflicts import Circumstances, RowFile, measured_conflicts
from qexp.merging.plan import Copies, Plan, PlannedJournal, Write, files_below, same_bytes, stores_with, take_equal
from qexp.merging.stores import Store, check_apart, reading, source_of, target_of, writing
from qexp.merging.trainings import Evaluations, merge_analyses, plan_folder
from qexp.merging.units import journal_key, merge_rows, units_of
from qexp.merging.write import write_files
from qexp.tracking.journal import Journal, journal_names, journal_path
from qexp.tracking.rows import Row

TRAININGS, CHECKPOINTS, CONFIRMATIONS, EXPORTS = (Path(name) for name in ("trainings", "checkpoints", "confirmations", "exports"))
_IN_OTHER_BYTES = ("example.npz", "network.pt2")  # exported files that are not written twice in the same bytes, of one network
_SHOWN = 20  # conflicts that are named one by one


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Args:
        into: the store.
        num_records: experiment -> records in its journal there.
        num_trainings: trainings and checkpoints.
        num_evaluations: of their variants.
        num_written: files; 0 where nothing was missing.
        left_out: what differs between stores and is made again: files of results, folders of exported files.
    """

    into: Store
    num_records: dict[str, int]
    num_trainings: int
    num_evaluations: int
    num_written: int
    left_out: tuple[str, ...]


def merge(sources: Sequence[str], into: str, *, results: bool) -> Merged:
    """Merge stores into one.

    Args:
        sources: folders, as `qexp.merging.stores.source_of` takes them; they are not changed.
        into: the folder that gets `runs/` and `results/`; what is there is part of the union.
        results: take what lies in the results of experiments that have a journal too; reports of them are to be written again.

    Raises:
        UserErrors, UserError: a folder that is no store, a process that works on one, or numbers that differ; nothing is written.
        SaveError: the system refused (a full disk); the same command goes on.
    """
    stores, target = [source_of(text) for text in sources], target_of(into)
    if not stores:
        raise UserError("from", "[]", allowed="at least one folder", remedy="from=[DIR,DIR]")
    check_apart(stores, target)
    assert target.runs is not None and target.results is not None
    with reading(stores), ExitStack() as stack:
        there = target.runs.is_dir()
        if there:  # else it is made once nothing is refused
            stack.enter_context(writing(target, _hashes(stores)))
        plan = _plan([*stores, target], results=results)
        if plan.conflicts:
            raise _refusal(plan, sources)
        if not there:
            stack.enter_context(writing(target, _hashes(stores)))
        for folder in (*(target.runs / kind for kind in (TRAININGS, CHECKPOINTS, CONFIRMATIONS, EXPORTS)), target.results):
            discard_partials(folder)
        written = write_files(target.runs, plan.removed) + write_files(target.runs, plan.runs)
        written += sum(_write_journal(target, journal) for journal in plan.journals)
        written += write_files(target.results, plan.results)
    num_records = {journal.name: journal.num_records for journal in plan.journals}
    return Merged(target, num_records, len(plan.hashes), plan.num_evaluations, written, tuple(plan.left_out))


def _refusal(plan: Plan, sources: Sequence[str]) -> UserErrors:
    """What the stores disagree on, the first of it by name."""
    shown, count = plan.conflicts[:_SHOWN], len(plan.conflicts)
    remedy = (
        "Equal names stand for equal numbers, and these are not; nothing was written. Leave one of the two stores out, or make a "
        "copy of it without the training and the experiment that are wrong there."
    )
    more = [f"... and {count - len(shown)} more"] if count > len(shown) else []
    texts = "\n".join(f"  {line}" for line in [*map(str, shown), *more])
    return UserErrors([UserError("from", f"[{','.join(sources)}]", allowed="stores that agree", remedy=f"{remedy}\n{texts}")])


def _hashes(stores: Sequence[Store]) -> set[str]:
    """The trainings and checkpoints that any store has."""
    folders = [store.runs / kind for store in stores if store.runs is not None for kind in (TRAININGS, CHECKPOINTS)]
    return {name for folder in folders for name in names_in(folder) if not name.startswith(".")}


def _plan(stores: Sequence[Store], *, results: bool) -> Plan:
    """Read all stores; the last of them is the one that will be written."""
    plan = Plan()
    for kind in (TRAININGS, CHECKPOINTS):
        names = {name for _, folder in stores_with(stores, kind) for name in names_in(folder) if not name.startswith(".")}
        for name in sorted(names):
            copies = [(store, folder) for store, folder in stores_with(stores, kind / name) if folder.is_dir()]
            if copies:
                plan_folder(plan, kind / name, copies)
    for path, files in files_below(stores_with(stores, CONFIRMATIONS)).items():
        lines = merge_analyses(plan, files, f"{CONFIRMATIONS / path}")
        plan.runs.append(Write(CONFIRMATIONS / path, "".join(f"{line}\n" for line in lines).encode()))
    _plan_exports(plan, files_below(stores_with(stores, EXPORTS)))
    runs = [store.runs for store in stores if store.runs is not None]
    for name in sorted({name for folder in runs for name in journal_names(folder)}):
        plan.journals.append(_plan_journal(plan, name, stores))
    _plan_results(plan, stores, results=results)
    return plan


def _plan_exports(plan: Plan, files: Mapping[Path, Copies]) -> None:
    """Plan exported files. A folder's are of one network, and its path says neither seed nor training: all are of one store.

    Of several stores it is the one whose names and hashes come first as text, in which more files come before fewer. The file
    that decides is written last, so a folder that a merge was killed in is not taken for one of a store.
    """
    folders: dict[Path, dict[Store, dict[str, Path]]] = {}
    for path, copies in files.items():
        for store, file in copies:
            folders.setdefault(path.parent, {}).setdefault(store, {})[path.name] = file
    for folder, files_of in folders.items():
        exported = [_Exported(own) for own in files_of.values()]
        chosen = min(exported, key=lambda one: one.rank)
        names = sorted({name for one in exported for name in one.files} - chosen.files.keys())
        plan.removed += [Write(EXPORTS / folder / name, None) for name in names]
        order = sorted(chosen.files, key=lambda name: (name in _IN_OTHER_BYTES, name), reverse=True)
        plan.runs += [Write(EXPORTS / folder / name, chosen.files[name]) for name in order]
        if any(not one.network.items() <= chosen.network.items() for one in exported):
            plan.left_out.append(f"{EXPORTS / folder}")


class _Exported:
    """A folder of exported files in one store."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files
        hashes = {name: hash_file(path) for name, path in files.items()}
        self.network = {name: text for name, text in hashes.items() if name not in _IN_OTHER_BYTES}
        self.rank = (canonical_json(self.network), -len(hashes), canonical_json(hashes))


def _plan_journal(plan: Plan, name: str, stores: Sequence[Store]) -> PlannedJournal:
    """Plan the union of an experiment's journals."""
    copies = [(store, journal_path(store.runs, name)) for store in stores if store.runs is not None]
    files = []
    for store, path in copies:
        rows = list(Journal(path, needs=("kind",)).rows())
        files.append(RowFile(store.name, units_of(rows, journal_key), _Computed(store)))
    plan.conflicts += measured_conflicts(files, f"experiment {name}")
    lines = merge_rows([file.units for file in files])
    num_records = sum(line.startswith('{"kind":"record"') for line in lines)
    target = copies[-1][1]
    size = target.stat().st_size if target.is_file() else 0
    return PlannedJournal(name, "".join(f"{line}\n" for line in lines).encode(), size, num_records)


class _Computed:
    """What a record of a journal was computed on, as the evaluations beside its training say; None where they are gone."""

    def __init__(self, store: Store) -> None:
        self._runs = store.runs
        self._of_training: dict[str, Evaluations] = {}

    def __call__(self, row: Row) -> Circumstances | None:
        training = row["training"]
        if training not in self._of_training:
            assert self._runs is not None, "a journal lies in runs"
            folders = [self._runs / kind / training for kind in (TRAININGS, CHECKPOINTS)]
            self._of_training[training] = Evaluations(next((path for path in folders if path.is_dir()), folders[0]))
        return self._of_training[training].circumstances(row)


def _plan_results(plan: Plan, stores: Sequence[Store], *, results: bool) -> None:
    """Plan the folders of results: copied where they agree.

    Where they differ they are left out if a command makes them again: of the journal, or, of an analysis, which has none, of the
    numbers in `runs/` of every store that has them.
    """
    made_again = {journal.name for journal in plan.journals}
    there = [(store, store.results) for store in stores if store.results is not None]
    for name in sorted({name for _, folder in there for name in names_in(folder) if (folder / name).is_dir()}):
        if name.startswith(".") or (name in made_again and not results):
            continue
        for path, files in files_below([(store, folder / name) for store, folder in there if (folder / name).is_dir()]).items():
            has_numbers = name in made_again or all(store.runs is not None for store, _ in files)
            if has_numbers and not same_bytes(files):
                plan.left_out.append(f"{Path(name, path)}")
            else:
                take_equal(plan, plan.results, Path(name, path), files, f"results of {name}, {path}")


def _write_journal(into: Store, planned: PlannedJournal) -> bool:
    """Write a journal, unless it is there; MLflow is then sent all of it, of which it has the most and takes nothing twice.

    Raises:
        UserError: a process appended to it meanwhile.
    """
    assert into.runs is not None
    path = journal_path(into.runs, planned.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if (path.stat().st_size if path.is_file() else 0) != planned.size_before:
            remedy = f"{path} was appended to meanwhile: give the command again."
            raise UserError("into", into.name, allowed="a store that no process works on", remedy=remedy)
        for partial in path.parent.glob(f".{path.name}.*.tmp"):  # of a merge that was killed
            partial.unlink()
        if path.is_file() and path.read_bytes() == planned.content:
            return False
        path.with_name(f"{path.stem}.mlflow.json").unlink(missing_ok=True)  # it counts bytes of the journal as it was
        write_bytes_atomic(path, planned.content)
    return True
