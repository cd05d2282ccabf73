"""Three stores of 3 000 records each, half of them shared, merged in every order.

    python scripts/bench_merge.py [records=3000] [shared=1500] [orders=6]

A store has trainings of 5 epochs with 20 variants each: journal, evaluations, predictions of 1 000 images after the last epoch,
and weights of 64 KiB.
Some trainings are copies of one store's, as where machines began from one folder; the others were measured on one machine alone.
Printed: CPU and wall seconds of each merge, per 10 000 rows of the sources too, and whether all are the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path

from bench_common import options

from qexp.merging.merge import merge
from qexp.tracking import rows
from qexp.tracking.journal import Journal
from qexp.tracking.record import Record

EPOCHS, VARIANTS = 5, 20  # of a training; the float network is one of them
PREDICTIONS, WEIGHTS = 11_000, 65_536  # bytes of a file
DEFAULTS = {"records": "3000", "shared": "1500", "orders": "6"}
HERE = {"device": "cpu", "cpu": "one", "threads": 1, "torch": "2", "batch_size": 100, "channels_last": False}


def record_of(training: str, variant: int, epoch: int, time_ms: int, *, last: bool = False) -> Record:
    """A record whose numbers are a function of training, variant and epoch; after the last one predictions are kept."""
    digits = int(hashlib.sha256(f"{training}/{variant}/{epoch}".encode()).hexdigest()[:8], 16)
    prec1, is_float = digits % 1000 / 10, variant == 0
    return Record(
        experiment="exp", training=training, variant="fp32" if is_float else f"W{variant} int", variant_key=f"key{variant:02d}",
        bits=32 if is_float else variant, mode="fp32" if is_float else "int", policy="uniform", quant="linear",
        granularity="per_tensor", input_quant="none", seed=0, epoch=epoch, prec1=prec1, prec5=100.0, loss=digits / 1e8,
        delta_prec1=0.0, n=1000, kl=None, logit_sqnr_db=None, size_bytes=1000 * variant, split="test",
        plan_hash=f"plan{variant}", data_hash="data", time_ms=time_ms, versions={"torch": "2"},
        predictions=f"predictions/key{variant:02d}/{epoch:04d}.safetensors" if last else None,
    )  # fmt: skip


def write_training(runs: Path, training: str, start_ms: int, *, epochs: int = EPOCHS, variants: int = VARIANTS) -> None:
    """Write one training, all of its evaluations and its rows of the journal `exp`.

    Args:
        runs: `runs_dir`.
        training: its hash.
        start_ms: when it began.
        epochs: that it had.
        variants: of it, the float network among them.
    """
    folder, time_ms = runs / "trainings" / training, start_ms
    journal = [rows.sweep_row(f"s{start_ms}", command="train", versions={"torch": "2"}, host="h", git=None, time_ms=time_ms)]
    for variant in range(variants):
        key = rows.run_key(training, f"key{variant:02d}" if variant else None)
        parent = training if variant else None
        params = {"train.epochs": epochs, "bits": variant}
        journal.append(
            rows.run_row(key, name=f"W{variant}", params=params, parent=parent, planned_epochs=epochs, time_ms=time_ms)
        )
    evaluations: dict[str, list[rows.Row]] = {}
    log = []
    for epoch in range(1, epochs + 1):
        weights = hashlib.shake_256(f"{training}/{epoch}".encode()).digest(WEIGHTS)
        write(folder / "epochs" / f"{epoch:04d}.safetensors", weights)
        log.append({"epoch": epoch, "train_loss": 1 / epoch, "lr": 0.1, "seconds": float(start_ms), "weights_hash": f"{epoch}"})
        journal.append(rows.metrics_row(training, step=epoch, values={"train_loss": 1 / epoch}, time_ms=time_ms))
        for variant in range(variants):
            time_ms += 3
            record = record_of(training, variant, epoch, time_ms, last=epoch == epochs)
            journal.append(rows.record_row(record))
            digest = f"{record.prec1}{record.loss}"
            evaluations.setdefault(record.variant_key, []).append({**record.as_row(), "digest": digest, "computed": HERE})
            if record.predictions is not None:
                seen = hashlib.shake_256(f"{training}/{variant}/{epoch}".encode()).digest(PREDICTIONS)
                write(folder / record.predictions, seen)
    journal.append(rows.end_row(training, "FINISHED", time_ms=time_ms))
    for key, measured in evaluations.items():
        Journal(folder / "variants" / f"{key}.jsonl").append(measured)
    write(folder / "train.jsonl", "".join(json.dumps(line) + "\n" for line in log).encode())
    info = {"identity": {"training": training}, "created": str(start_ms), "status": "done", "epochs": epochs}
    write(folder / "training.json", json.dumps(info).encode())
    Journal.of(runs, "exp").append(journal)


def write(path: Path, data: bytes) -> None:
    """Write a file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def digest_of(folder: Path) -> str:
    """Of the names and bytes of all files but hidden ones."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Make the stores, merge them in each order, print what it took."""
    chosen = options(DEFAULTS)
    per_training = EPOCHS * VARIANTS
    num_shared, num_own = int(chosen["shared"]) // per_training, (int(chosen["records"]) - int(chosen["shared"])) // per_training
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(num_shared):
            write_training(folder / "0" / "runs", f"{number:016x}", 1_000_000 * number)
        for store in (1, 2):
            shutil.copytree(folder / "0", folder / str(store))
        for store in range(3):
            for number in range(num_own):
                training = (store + 1) * 1000 + number
                write_training(folder / str(store) / "runs", f"{training:016x}", 1_000_000 * training)
        num_rows = sum(1 for path in folder.rglob("*.jsonl") for _ in path.open())
        print(f"3 stores, {chosen['records']} records each, {num_rows} rows in {sum(1 for _ in folder.rglob('*.*'))} files")
        digests = set()
        for order in list(permutations("012"))[: int(chosen["orders"])]:
            into, cpu, wall = folder / "".join(order), time.process_time(), time.perf_counter()
            merged = merge([str(folder / store) for store in order], str(into), results=False)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            digests.add(digest_of(into))
            rate = 1e4 * cpu / num_rows
            took = f"{cpu:.2f} s of CPU, {wall:.2f} s, {rate:.2f} s of CPU per 10 000 rows"
            print(f"{''.join(order)}: {merged.num_records['exp']} records, {took}")
            shutil.rmtree(into)
        print("the same bytes in every order" if len(digests) == 1 else f"{len(digests)} different stores")
        sys.exit(len(digests) != 1)


if __name__ == "__main__":
    main()
