"""How planning, repeating, reporting, listing and sending grow: 400 variants, a journal of 100 000 rows, 2 000 trainings.

    python scripts/bench_growth.py [variants=50,100,200,400] [epochs=200] [copies=1,4,16,41] [trainings=250,500,1000,2000]
        [parts=trainings,rows,variants] [checkout=FOLDER] [out=results/bench]

Everything that grows is run once, resnet20 on 64 of scikit-learn's digits, scored on 20:
    variants    one epoch and so many variants; then the same command again (`repeat`), and with plan_only=true (`plan_only`)
    rows        10 variants of so many `epochs`, and the same command again (`repeat_epochs`); then as many copies of that
                training in one journal, each under another hash and seed, with its predictions: a report of it (`report`), and
                all of it sent to a new store (`sync`). 41 copies of 200 epochs are 100 000 rows
    trainings   so many copies of a stored training: the list of them (`trainings`)

Each measure is a fresh process of `checkout` (this one by default; another shows what was before). Counted are its CPU seconds,
user and system, on one thread, of all its threads and children, start-up and imports included; its peak memory; and what it
appended to the journal. `exponent` is the slope of a straight line through log(CPU seconds less those of a process that imports
the same and ends) over log(size); 1 is linear. The CSV names the environment, and is complete after each measure.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from importlib import metadata
from math import log
from pathlib import Path

from bench_common import options, write_csv
from bench_quantize import processor

DEFAULTS = {
    "variants": "50,100,200,400",
    "epochs": "200",
    "copies": "1,4,16,41",
    "trainings": "250,500,1000,2000",
    "parts": "trainings,rows,variants",
    "checkout": str(Path(__file__).resolve().parents[1]),
    "out": "results/bench",
}
NAME = "digits"
COMMON = ("data=digits", "data.num_train=64", "model=resnet20", "evaluate.num_images=20", "device=cpu", "draw_figures=false")
WIDTHS = (2, 3, 4, 5, 6, 7, 9, 10, 11, 12)  # of the widest sweep; first_last keeps 8 bits for itself
SCHEMES = ("linear", "affine", "symmetric", "symmetric_restricted", "unsigned_symmetric")
# What a process of each measure imports, whatever it is given; those that are not named are sweeps.
IMPORTS = {
    "sweep": "qexp.sweep.run, qexp.sweep.compose, hydra",
    "first": "qexp.sweep.run, qexp.sweep.compose, hydra, mlflow",
    "report": "qexp.reporting.report",
    "sync": "qexp.tracking.sync, mlflow",
    "trainings": "qexp.trainings, qexp.engine.trajectory",
}
LARGEST = len(WIDTHS) * len(SCHEMES) * 2 * 2 * 2


@dataclass(frozen=True)
class Measured:
    """One process: CPU seconds, peak memory in MiB, bytes that it appended to the journal."""

    cpu_s: float
    peak_mib: float
    appended_bytes: int


def sweep(variants: int) -> list[str]:
    """Overrides of a sweep of so many variants: all widths, as many of the other choices as it takes."""
    assert variants <= LARGEST and variants % len(WIDTHS) == 0, f"a multiple of {len(WIDTHS)}, at most {LARGEST}"
    sizes = {"mode": ("int", "float"), "granularity": ("per_tensor", "per_channel"), "policy": ("uniform", "first_last")}
    wanted, chosen = variants // len(WIDTHS), {}
    for name, values in sizes.items():
        chosen[name] = values if wanted % 2 == 0 else values[:1]
        wanted //= len(chosen[name])
    assert wanted <= len(SCHEMES), f"{variants} variants are no product of {len(WIDTHS)}, 2, 2, 2 and at most {len(SCHEMES)}"
    return [
        f"bits={','.join(map(str, WIDTHS))}",
        f"mode={','.join(chosen['mode'])}",
        f"quant={','.join(SCHEMES[:wanted])}",
        f"quant.weight.granularity={','.join(chosen['granularity'])}",
        f"policy={','.join(chosen['policy'])}",
    ]


def run(verb: str, arguments: Sequence[str], folder: Path, checkout: Path) -> Measured:
    """Run one command in `folder`."""
    return wait(["-m", f"qexp.{verb}", *arguments], folder, checkout)


def wait(arguments: Sequence[str], folder: Path, checkout: Path) -> Measured:
    """Start Python in `folder` and wait for it."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    journal = folder / "runs" / "journal" / f"{NAME}.jsonl"
    before = journal.stat().st_size if journal.exists() else 0
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "output.txt", "w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)}\n{output.read()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    size = journal.stat().st_size if journal.exists() else 0
    return Measured(seconds, usage.ru_maxrss / 1024, size - before)


class Table:
    """The rows of the CSV, written anew after each measure.

    Args:
        checkout: that is measured.
        path: of the CSV.
    """

    def __init__(self, checkout: Path, path: Path) -> None:
        self._path, self._rows = path, []
        with tempfile.TemporaryDirectory() as name:
            imports = {measure: wait(["-c", f"import {modules}"], Path(name), checkout) for measure, modules in IMPORTS.items()}
        self._floors = {measure: one.cpu_s for measure, one in imports.items()}
        revision = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        self._environment = {
            "revision": subprocess.run(revision, capture_output=True, text=True, check=False).stdout.strip(),
            "processor": processor("cpu"),
            "cores": len(os.sched_getaffinity(0)),
            "threads": 1,
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: metadata.version(name) for name in ("torch", "hydra-core", "mlflow", "pandas")},
            "load_at_start": round(os.getloadavg()[0], 2),
            "date": date.today().isoformat(),
        }

    def add(self, measure: str, unit: str, sizes: Sequence[int], measured: Sequence[Measured]) -> None:
        """Rows of one measure, and its line.

        Args:
            measure: its name.
            unit: what `sizes` count.
            sizes: of each process.
            measured: of each process.
        """
        floor_s = self._floors.get(measure, self._floors["sweep"])
        exponent = slope(sizes, [one.cpu_s - floor_s for one in measured])
        for size, one in zip(sizes, measured, strict=True):
            values = {"measure": measure, "unit": unit, "size": size, "n": 1, "cpu_s": round(one.cpu_s, 2)}
            values |= {"peak_mib": round(one.peak_mib), "appended_bytes": one.appended_bytes, "imports_cpu_s": round(floor_s, 2)}
            self._rows.append(values | {"exponent": exponent} | self._environment)
        texts = [f"{size}: {one.cpu_s:.1f} s" for size, one in zip(sizes, measured, strict=True)]
        last = measured[-1]
        memory = f"{last.peak_mib:.0f} MiB, {last.appended_bytes} bytes appended"
        print(f"{measure:<14} exponent {exponent:>5}  {unit} {', '.join(texts)}; {memory}", flush=True)
        write_csv(self._path, self._rows)


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float | str:
    """The exponent of a power law through the points; empty where there are fewer than two, or one within the clock's error."""
    if len(sizes) < 2 or min(seconds) < 0.05:
        return ""
    return round(statistics.linear_regression([log(size) for size in sizes], [log(value) for value in seconds]).slope, 2)


def other_hash(training: str, copy: int) -> str:
    """The hash of a copy; of the first the training's own."""
    return training if copy == 0 else sha256(f"{training} {copy}".encode()).hexdigest()[: len(training)]


def copy_training(runs: Path, training: str, copy: int, *parts: str) -> None:
    """A stored training once more, under another hash; its files are links."""
    source, target = runs / "trainings" / training, runs / "trainings" / other_hash(training, copy)
    for path in (path for part in parts for path in (source / part).rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, place)
    for name in ("training.json", "train.jsonl"):
        text = (source / name).read_text(encoding="utf-8")
        (target / name).write_text(text.replace(training, target.name), encoding="utf-8")


def grow_journal(lines: Sequence[str], training: str, copies: int, path: Path) -> int:
    """A journal of so many copies of the rows of a training, each under another hash and seed; returns the number of its rows."""
    path.parent.mkdir(parents=True)
    rows = 0
    with open(path, "w", encoding="utf-8") as journal:
        for copy in range(copies):
            for line in lines:
                if copy and json.loads(line)["kind"] == "sweep":
                    continue
                text = line.replace(training, other_hash(training, copy))
                text = re.sub(r'"seed":0\b', f'"seed":{copy}', text)
                journal.write(_other_job(text, copy))
                rows += 1
    return rows


def _other_job(line: str, copy: int) -> str:
    """A row of a job as one of another job; other rows as they are."""
    row = json.loads(line)
    if row["kind"] != "job":
        return line
    row["key"] = other_hash(row["key"], copy)
    if row["job"] is not None:
        row |= {"job": row["job"] + 10 * copy, "asked": f"seed={copy} {row['asked']}"}
    return json.dumps(row, separators=(",", ":")) + "\n"


def of_variants(counts: Sequence[int], checkout: Path, table: Table) -> None:
    """A sweep of so many variants, again, and planned."""
    measured: Mapping[str, list[Measured]] = {"first": [], "repeat": [], "plan_only": []}
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            arguments = [*COMMON, "train=smoke", *sweep(count), "-m"]
            for measure, more in (("first", []), ("repeat", []), ("plan_only", ["plan_only=true"])):
                measured[measure].append(run("train", [*arguments, *more], Path(name), checkout))
    for measure, several in measured.items():
        table.add(measure, "variants", counts, several)


def of_rows(epochs: int, copies: Sequence[int], checkout: Path, table: Table) -> None:
    """Reports of growing journals, and what it takes to send them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [*COMMON, "train=smoke", f"train.epochs={epochs}", f"bits={','.join(map(str, WIDTHS))}", "-m"]
        run("train", [*arguments, "tracking.enabled=false"], folder, checkout)
        lines = (folder / "runs/journal" / f"{NAME}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (training,) = (path.name for path in (folder / "runs/trainings").iterdir())
        again = run("train", [*arguments, "tracking.enabled=false"], folder, checkout)
        table.add("repeat_epochs", "epochs", [epochs], [again])
        sizes, reports, sent = [], [], []
        for count in copies:
            shutil.rmtree(folder / "runs/journal")
            sizes.append(grow_journal(lines, training, count, folder / "runs/journal" / f"{NAME}.jsonl"))
            for copy in range(1, count):
                if not (folder / "runs/trainings" / other_hash(training, copy)).exists():
                    copy_training(folder / "runs", training, copy, "predictions")
            reports.append(run("report", [f"name={NAME}"], folder, checkout))
            sent.append(run("sync", [f"name={NAME}"], folder, checkout))
            (folder / "runs/mlflow.db").unlink()
            shutil.rmtree(folder / "runs/mlartifacts", ignore_errors=True)
            print(f"{count} copies: {sizes[-1]} rows, report {reports[-1].cpu_s:.1f} s, sync {sent[-1].cpu_s:.1f} s", flush=True)
        table.add("report", "rows", sizes, reports)
        table.add("sync", "rows", sizes, sent)


def of_trainings(counts: Sequence[int], checkout: Path, table: Table) -> None:
    """The list of so many stored trainings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run("train", [*COMMON, "train=smoke", "bits=4,8", "-m", "tracking.enabled=false"], folder, checkout)
        (training,) = (path.name for path in (folder / "runs/trainings").iterdir())
        measured, made = [], 1
        for count in counts:
            for copy in range(made, count):
                copy_training(folder / "runs", training, copy, "epochs", "variants", "predictions")
            made = count
            measured.append(run("trainings", [], folder, checkout))
        table.add("trainings", "trainings", counts, measured)


def main() -> None:
    given = options(DEFAULTS)
    checkout = Path(given["checkout"]).absolute()
    counts = {name: [int(text) for text in given[name].split(",")] for name in ("variants", "copies", "trainings")}
    stem = f"growth-{processor('cpu')}-torch{metadata.version('torch')}-{date.today().isoformat()}".lower()
    path = Path(given["out"]) / f"{re.sub(r'[^a-z0-9.-]', '_', stem)}.csv"
    table = Table(checkout, path)
    parts = {
        "trainings": lambda: of_trainings(counts["trainings"], checkout, table),
        "rows": lambda: of_rows(int(given["epochs"]), counts["copies"], checkout, table),
        "variants": lambda: of_variants(counts["variants"], checkout, table),
    }
    for part in given["parts"].split(","):
        parts[part]()


if __name__ == "__main__":
    main()
