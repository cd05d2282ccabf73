"""Ranges of activations that an earlier run found, taken from its file: the same numbers, without a calibration image."""

import contextlib
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from qexp.data.bundle import DataBundle
from qexp.ptq.calibration import Calibration

GRID = ("bits=8", "quant=affine", "quant.activation.bits=8")


@pytest.fixture(scope="module")
def evaluate(cli, tiny):
    """Run qexp.evaluate on the checkpoint of the working directory."""
    return lambda *more: cli("checkpoint=checkpoint.pt", *tiny, *more, verb="evaluate")


@pytest.fixture(scope="module")
def evaluated(evaluate, tmp_path_factory):
    """A folder with a small network's checkpoint, what a run that found its ranges left behind, and the file of these."""
    make = runpy.run_path(str(Path(__file__).parents[1] / "networks.py"))["tiny"]
    with contextlib.chdir(tmp_path_factory.mktemp("evaluated")):
        torch.manual_seed(0)
        torch.save(make(10, 1).state_dict(), "checkpoint.pt")
        assert evaluate(*GRID, "calibrate=percentile", "calibrate.percentile=99").code == 0
        (path,) = Path("runs/checkpoints").glob("*/calibrations/*/0000.safetensors")
        shutil.copy(path, "ranges.safetensors")
        return Path.cwd()


@pytest.fixture
def found(evaluated) -> Path:
    """The file in a copy of that folder, which is the working directory."""
    shutil.copytree(evaluated, ".", dirs_exist_ok=True)
    return Path("ranges.safetensors")


def rows():
    """Label -> what was recorded; tables show copies with equal numbers once."""
    lines = [line for path in Path("runs").glob("*/*/variants/*.jsonl") for line in path.read_text().splitlines()]
    return {row["variant"]: row for row in map(json.loads, lines)}


def test_the_same_numbers_bit_for_bit_without_calibration_images(evaluate, found, monkeypatch):
    original = DataBundle.eval_batches

    def no_calib(self, split, **options):
        assert split != "calib", "a calibration image was asked for"
        return original(self, split, **options)

    monkeypatch.setattr(DataBundle, "eval_batches", no_calib)
    done = evaluate(*GRID, f"calibrate.file={found}")
    assert done.code == 0, done.err
    calibration = Calibration.load(found)
    reused, first = f"W8A8 int affine ranges_{calibration.hash[:6]}", "W8A8 int affine percentile"
    row, before = rows()[reused], rows()[first]
    measured = ("digest", "prec1", "prec5", "loss", "kl", "logit_sqnr_db", "size_bytes", "n")
    assert [row[name] for name in measured] == [before[name] for name in measured]
    assert row["digest"] != rows()["fp32"]["digest"] and f"same plan: {reused}" in done.out
    assert row["ranges"] == f"weights minmax, activations percentile of file {calibration.hash}" and not row["alarms"]
    assert "note:" not in done.out
    (folder,) = Path("runs/checkpoints").iterdir()
    assert Calibration.load(folder / row["calibration"]).hash == calibration.hash  # what a number rests on lies beside it


def test_the_key_is_the_content_wherever_it_lies(evaluate, found):
    Path("else").mkdir()
    moved = shutil.copy(found, "else/where.safetensors")
    assert evaluate(*GRID, f"calibrate.file={found}").code == 0
    assert "nothing to do" in evaluate(*GRID, f"calibrate.file={moved}").out
    assert evaluate(*GRID, "calibrate=aciq").code == 0
    other = next(path for path in Path("runs").glob("*/*/calibrations/*/*") if Calibration.load(path).settings["name"] == "aciq")
    assert "nothing to do" not in evaluate(*GRID, f"calibrate.file={other}").out
    assert len([label for label in rows() if "ranges_" in label]) == 2


def test_ranges_of_other_data_are_stamped_on_the_number(evaluate, found):
    assert "calibrate.split=calib: allowed is a split that holds images" in evaluate(*GRID, "data.num_calib=0").err
    done = evaluate(*GRID, "data.num_calib=0", f"calibrate.file={found}")
    assert done.code == 0, done.err
    (alarm,) = next(row for label, row in rows().items() if "ranges_" in label)["alarms"]
    assert alarm.startswith("calibrated on other data") and alarm in done.out


def test_images_that_corrections_learn_from_are_still_needed(evaluate, found):
    done = evaluate(*GRID, "data.num_calib=0", f"calibrate.file={found}", "correct.reestimate_bn=true")
    assert done.code == 2 and "calibrate.split=calib" in done.err


def test_ranges_of_other_weights_are_noted_once(cli, tiny, found):
    done = cli(*tiny, *GRID, "train.epochs=2", f"calibrate.file={found}")
    assert done.code == 0, done.err
    assert done.out.count("the ranges of calibrate.file were found with other weights than these") == 1


def test_a_file_that_nothing_reads_is_refused(evaluate, found):
    for more in ("quant.activation.bits=null", "quant.activation.dynamic=true"):
        assert evaluate(*GRID, more).code == 0
        done = evaluate(*GRID, more, f"calibrate.file={found}")
        assert done.code == 2 and "and no job has static ones" in done.err


def damaged(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lacking(path):
    whole = Calibration.load(path)
    kept = [place for place in whole.methods if not place.endswith("input")]
    parts = {name: {place: getattr(whole, name)[place] for place in kept} for name in ("ranges", "methods", "grids")}
    Calibration(**{**vars(whole), **parts}).save(path)


@pytest.mark.parametrize(
    "harm, more, message",
    [
        (lambda path: path.unlink(), (), "calibrate.file=ranges.safetensors: allowed is a file that exists"),
        (lambda path: path.write_text("{}"), (), "calibrate.file=ranges.safetensors: allowed is a file of calibrated ranges"),
        (damaged, (), "calibrate.file=ranges.safetensors: allowed is an undamaged file"),
        (lacking, (), "calibrate.file=no input: allowed is a range for every place of the plan"),
        (lambda path: None, ("quant.activation.granularity=per_channel",), "calibrate.file=input: 1 percentile range"),
    ],
)
def test_a_file_that_does_not_fit_starts_nothing(evaluate, found, harm, more, message):
    harm(found)
    shutil.rmtree("runs")
    done = evaluate(*GRID, *more, f"calibrate.file={found}")
    assert done.code == 2 and message in done.err and "Traceback" not in done.err, done.err
    assert not Path("runs/checkpoints").exists()
