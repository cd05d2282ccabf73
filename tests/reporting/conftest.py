"""Synthetic sweeps as a sweep journals them: rows of plain dicts, which is all that reporting reads."""

import json
import math
import random

import numpy as np
import pytest
from safetensors.numpy import save_file

from qexp.tracking.journal import journal_path

EPOCHS = 8
# Points of Prec@1 that int loses at these widths, as ResNets on small data sets do.
LOSS_AT = {16: 0.0, 8: 0.02, 6: 0.15, 4: 2.1, 3: 14.0, 2: 84.0}


def make_params(**changes):
    """A training's parameters."""
    return {
        "name": "exp", "seed": 0, "data.name": "mnist5k", "data.num_calib": 500, "data.root": None, "model.name": "resnet20",
        "train.lr": 0.1, "train.epochs": EPOCHS, "train.batch_size": 128, "train.momentum": 0.9, "evaluate.split": "test",
    } | changes  # fmt: skip


def make_record(variant="W8 int", epoch=1, *, training="a1b2c3d4e5f60718", **changes):
    """One record row."""
    plain = variant == "fp32"
    bits, mode = (32, "float") if plain else (int(variant.split()[0][1:]), variant.split()[1])
    values = {
        "kind": "record", "run": training if plain else f"{training}/{variant}", "experiment": "exp", "training": training,
        "variant": variant, "variant_key": f"key {variant}", "bits": bits, "mode": mode, "policy": "uniform", "quant": "linear",
        "granularity": "per_tensor", "input_quant": "none", "seed": 0, "epoch": epoch, "prec1": 97.0, "prec5": 99.9, "loss": 0.1,
        "delta_prec1": 0.0, "n": 1000, "kl": None if plain else 0.01, "logit_sqnr_db": None if plain else 6.0 * bits - 10,
        "size_bytes": int(270_000 * min(bits, 32) / 8), "split": "test", "plan_hash": "plan " + variant, "data_hash": "d",
        "state": "done", "alarms": [], "reused": False, "predictions": None, "world_size": 1, "trained_by": "1", "device": "cpu",
        "time_ms": 1_000 + epoch, "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    if plain:
        values |= {"mode": "fp32", "policy": "", "quant": "", "granularity": ""}
    elif mode == "half":
        values |= {"quant": "half", "granularity": ""}
    return values | changes


def make_training(variants, *, training="a1b2c3d4e5f60718", top=97.6, epochs=EPOCHS, params=None, **changes):
    """A training's rows: a saturating curve, and below it those of its variants."""
    noise = random.Random(training)
    params = make_params() | (params or {})
    rows = [_run(training, None, "resnet20", params, epochs)]
    rows += [_run(f"{training}/{name}", training, name, params | {"bits": int(name.split()[0][1:])}, epochs) for name in variants]
    for epoch in range(1, epochs + 1):
        plain = round(top - 14 * math.exp(-0.75 * epoch) + noise.uniform(-0.15, 0.15), 1)
        rows.append(make_record("fp32", epoch, training=training, prec1=plain, **changes))
        for name in variants:
            bits, mode = int(name.split()[0][1:]), name.split()[1]
            lost = LOSS_AT[bits] * {"int": 1.0, "float": 0.01, "half": 0.0}[mode]
            prec1 = max(10.1, round(plain - lost * noise.uniform(0.7, 1.2) + noise.uniform(-0.1, 0.1), 1))
            numbers = {
                "prec1": prec1,
                "delta_prec1": prec1 - plain,
                "kl": 1e-6 * 4 ** (11 - min(bits, 11)),
                "loss": 2.3 - prec1 / 45,
                "prec5": min(99.9, 50 + prec1 / 2),
            }
            rows.append(make_record(name, epoch, training=training, **(numbers | changes)))
    return rows


def _run(key, parent, name, params, epochs):
    return {
        "kind": "run", "run": key, "parent": parent, "name": name, "params": params, "tags": {}, "artifacts": {},
        "planned_epochs": epochs, "time_ms": 0,
    }  # fmt: skip


TRAIN = {"lr": 0.1, "epochs": EPOCHS, "batch_size": 128, "momentum": 0.9}


def make_float(key, *, seed=0, weights=None, lr=0.1, top=97.6, variants=(), data="mnist5k", model="resnet20"):
    """A float training with its configuration: a start, or with `weights` and another `lr` a control."""
    params = {"seed": seed, "train.lr": lr, "model.weights": weights and "file", "data.name": data, "model.name": model}
    rows = make_training(list(variants), training=key, top=top, params=params, seed=seed)
    return _configured(rows, TRAIN | {"lr": lr}, weights)


def make_qat(key, method="lsq", bits=4, *, seed=0, weights=None, init="training", lr=0.1, start=97.5, top=96.0, **more):
    """A quantization-aware training: `start` is its float network's Prec@1 (none: its masters), `lr` that of the float recipe."""
    settings = {f"qat.{name}": value for name, value in more.pop("qat", {}).items()}
    tuned = lr * 0.1 if init == "training" else lr
    settings = {"qat.name": method, "qat.bits": bits, "qat.init": init, "qat.version": 1, "qat.mask": "paper"} | settings
    params = make_params(seed=seed, **{"train.lr": tuned, "model.weights": weights and "file"}) | settings
    params |= {"data.name": more.pop("data", "mnist5k"), "model.name": more.pop("model", "resnet20")}
    words = " ".join([f"W{bits}A{bits} {method}", *more.pop("words", ())])
    rows = [_run(key, None, "resnet20", params, EPOCHS), _run(f"{key}/q", key, words, params | {"bits": bits}, EPOCHS)]
    for epoch in range(1, EPOCHS + 1):
        prec1 = top - 10 / epoch
        plain = {"training": key, "seed": seed, "prec1": start if init != "none" else prec1 + 1.0} | more
        copy = {"run": f"{key}/q", "variant": words, "quant": method, "ranges": "as trained", "prec1": prec1, "plan_hash": words}
        rows.append(make_record("fp32", epoch, **plain))
        copy |= {"variant_key": "q", "delta_prec1": prec1 - plain["prec1"]}
        rows.append(make_record(f"W{bits} int", epoch, **plain) | copy)
    return _configured(rows, TRAIN | {"lr": lr}, weights)


def _configured(rows, train, weights):
    text = json.dumps({"train": train | {"checkpoint_every_steps": None}, "model": {"weights": weights}})
    return [row | {"artifacts": {"config.json": text}} if row["kind"] == "run" else row for row in rows]


def make_predicted(right, *, training="a1b2c3d4e5f60718", folder=None, epoch=1, classes=10, top1=None, **changes):
    """The rows of a training of one epoch whose variants are right where `right` says so, with their predictions in a store.

    right: variant -> [n] bool. folder: the store's `runs`; None keeps no predictions. top1: variant -> classes, where these
    are to differ among wrong answers; else a wrong answer is the next class.
    """
    n, rows = len(right["fp32"]), []
    label = np.arange(n) % classes
    seed = changes.get("seed", 0)
    rows.append(_run(training, None, "resnet20", make_params(seed=seed), epoch))
    for name, values in right.items():
        values = np.asarray(values, dtype=bool)
        first = np.where(values, label, (label + 1) % classes) if top1 is None or name not in top1 else top1[name]
        top5 = np.stack([first, *((label + step) % classes for step in (2, 3, 4, 5))], 1).astype(np.int16)
        top5[n // 2 :, 1] = label[n // 2 :]
        log_prob = np.where(values, -0.25, -2.5).astype(np.float32)
        relative = f"predictions/key {name}/{epoch:04d}.safetensors"
        if folder is not None:
            path = folder / "trainings" / training / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            index = np.arange(n, dtype=np.int32)
            save_file({"index": index, "label": label.astype(np.int16), "top5": top5, "log_prob": log_prob}, path)
        prec1 = 100 * int(values.sum()) / n
        numbers = {
            "prec1": prec1, "prec5": 100 * int((top5 == label[:, None]).any(1).sum()) / n, "n": n,
            "delta_prec1": prec1 - 100 * int(np.sum(right["fp32"])) / n, "loss": -float(log_prob.sum(dtype=np.float64)) / n,
            "predictions": None if folder is None else relative, "seed": seed,
        }  # fmt: skip
        if name != "fp32":
            run, bits = f"{training}/key {name}", int(name.split()[0][1:])
            rows.insert(1, _run(run, training, name, make_params(seed=seed, bits=bits), epoch))
            numbers["run"] = run
        rows.append(make_record(name, epoch, training=training, **(numbers | changes)))
    return rows


def last_prec1(rows):
    """The float network's Prec@1 after the last epoch of a training."""
    return [row["prec1"] for row in rows if row["kind"] == "record" and row["variant"] == "fp32"][-1]


SWEEP = {
    "kind": "sweep", "sweep": "s1", "command": "python -m qexp.train bits=4,8 -m", "versions": {"torch": "2.13.0"},
    "host": "box", "git": "0" * 40, "time_ms": 1_700_000_000_000,
}  # fmt: skip


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def training():
    return make_training


@pytest.fixture
def predicted():
    return make_predicted


@pytest.fixture
def comparison():
    """The rows of a comparison: per seed a float start, its control, and lsq and pact at 4 and 2 bits."""

    def make(seeds=(0,), *, control=True, methods=("lsq", "pact"), bits=(2, 4)):
        parts = []
        for seed in seeds:
            start = make_float(f"5{seed}" * 8, seed=seed, top=97.0 + seed)
            weights = f"/runs/trainings/{start[0]['run']}/epochs/000{EPOCHS}.safetensors"
            parts.append(start)
            for number, method in enumerate(methods):
                for width in bits:
                    key = f"{number}{width}{seed}a" * 4
                    parts.append(make_qat(key, method, width, seed=seed, start=last_prec1(start), top=90.0 + width + seed))
            # As it is typed: a tenth of the start's, which is not the same float.
            parts += [make_float(f"c{seed}" * 8, seed=seed, weights=weights, lr=0.01, top=98.0 + seed)] if control else []
        return [row for part in parts for row in part]

    return make


@pytest.fixture
def float_training():
    return make_float


@pytest.fixture
def qat_training():
    return make_qat


@pytest.fixture
def write(tmp_path):
    """Write rows as the journal of `exp` in `tmp_path / 'runs'`; returns that folder."""

    def write_rows(*parts, name="exp"):
        runs_dir = tmp_path / "runs"
        path = journal_path(runs_dir, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [SWEEP, *(row for part in parts for row in part)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return runs_dir

    return write_rows
