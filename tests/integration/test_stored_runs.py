"""What version 0.1.0 stored (tests/stored_runs/v1) is found, gone on with, evaluated and reported by today's code.

The commands are those of the store's README. Weights and logits are equal bit for bit where torch computes as it did on the
machine that wrote the store, and close elsewhere; hashes, labels and what is made of stored predictions are equal everywhere.
"""

import csv
import hashlib
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from qexp import report
from qexp.reporting.frames.summary import CLAIMS

STORE = Path(__file__).parents[1] / "stored_runs" / "v1"


def commands():
    """(experiment, runs_dir) -> verb and arguments, as README.md gives them."""
    text = (STORE / "README.md").read_text(encoding="utf-8")
    options = re.search(r'^OPTIONS="(.*)"$', text, re.M)[1]
    (training,) = {path.parent.parent.name for path in STORE.glob("store/trainings/*/epochs/0002.safetensors")}
    lines = re.findall(r"^(?:[A-Z_]+=\d+ )?python -m qexp[.](train|evaluate) (.*)$", text, re.M)
    given = [(verb, shlex.split(line.replace("$OPTIONS", options).replace("FLOAT", training))) for verb, line in lines]
    return {(_value(arguments, "name"), _value(arguments, "runs_dir")): (verb, arguments) for verb, arguments in given}


def _value(arguments, key):
    (value,) = [text.partition("=")[2] for text in arguments if text.startswith(f"{key}=")]
    return value


@pytest.fixture
def again(cli, tmp_path):
    """Give a command of the store again, in a copy of it as the working directory."""
    shutil.copytree(STORE, tmp_path, dirs_exist_ok=True)

    def run(name, *more):
        verb, arguments = commands()[name, "store"]
        if verb == "evaluate":  # where what nobody reads is refused since
            arguments = [text for text in arguments if not text.startswith("train.")]
        done = cli(*arguments, *more, verb=verb)
        assert done.code == 0, done.err
        return done.out

    return run


@pytest.fixture(scope="module", autouse=True)
def _cheap_reports():
    """Reports without what takes their time and is not looked at: pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: file.write(b"<svg ></svg>"))
        yield


def stored():
    """Name -> content of every file of the trainings and the checkpoints."""
    paths = [path for folder in ("trainings", "checkpoints") for path in Path("store", folder).rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file() and path.suffix != ".lock"}


def rows(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def assert_table_stands(name, folder="tables"):
    """Rows and every column of the stored table are there; there may be more columns, and what is judged is judged anew."""
    before, now = rows(STORE / "tables" / name / "table.csv"), rows(Path(folder, name, "table.csv"))
    assert len(before) > 1 and set(before[0]) <= set(now[0])
    assert_same(now, before, [key for key in before[0] if key not in (*CLAIMS, "ci_low", "ci_high")])


def assert_same(now, before, columns):
    """Equal rows as far as these columns go."""
    assert [{key: row[key] for key in columns} for row in now] == [{key: row[key] for key in columns} for row in before]


def kernels():
    """A hash of a few steps of the store's network, trained by torch alone: its last bits hang on the processor and on torch."""
    torch.manual_seed(0)
    network = runpy.run_path(str(STORE / "network.py"))["Small"](10, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    with torch.inference_mode():
        outputs = [*network.state_dict().values(), network.eval()(images)]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in outputs)).hexdigest()


@pytest.fixture(scope="module")
def same_bits():
    """True where torch computes here what it computed where the store was written."""
    return kernels() == (STORE / "kernels.txt").read_text().strip()


@pytest.mark.parametrize("name", ["finished", "qat"])
def test_the_same_command_finds_everything_stored(again, name):
    before = stored()
    assert "1 training (1 stored)" in again(name)
    assert stored() == before
    assert_table_stands(name)


def test_an_interrupted_training_ends_in_the_weights_of_an_undisturbed_one(again, same_bits):
    (last,) = Path("store").rglob("last.pt")
    assert {path.name for path in last.parent.glob("*.pt")} == {"last.pt", "previous.pt"}
    assert "going on in epoch 2, after batch 2 of " in again("interrupted")
    assert json.loads((last.parent / "training.json").read_text())["status"] == "done" and not list(Path("store").rglob("*.pt"))
    found, expected = load_file(last.parent / "epochs" / "0002.safetensors"), load_file("undisturbed.safetensors")
    assert_equal(found, expected, same_bits)


def assert_equal(found, expected, same_bits):
    """Of tensors by name: every bit where torch computes the same here, else closely."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        near = {"rtol": 0, "atol": 0} if same_bits else {"rtol": 1e-2, "atol": 1e-3}
        torch.testing.assert_close(found[name], tensor, **near, msg=lambda text, name=name: f"{name}: {text}")


def test_a_report_of_the_stored_journal_has_the_numbers_that_stood(again, capsys):
    assert report.run(report.ReportSettings(name="finished", runs_dir="store", results_dir="anew")) == 0
    assert_table_stands("finished", folder="anew")
    for name in ("table.csv", "pairs.csv", "predictions.safetensors"):
        assert Path("anew/finished", name).is_file()
    stored_pairs, pairs = rows("tables/finished/pairs.csv"), rows("anew/finished/pairs.csv")
    assert stored_pairs and set(stored_pairs[0]) == set(pairs[0])
    assert_same(pairs, stored_pairs, [key for key in pairs[0] if key != "p_holm"])
    capsys.readouterr()
    assert report.run(report.ReportSettings(name="finished", runs_dir="none", results_dir="tables", verify=True)) == 0
    assert "numbers are what the stored predictions give" in capsys.readouterr().out


def test_a_converted_network_is_evaluated_again(again, cli, same_bits):
    (path,) = Path("store").rglob("converted.safetensors")
    (before,) = measured("store", path.parent.name, "W3A3 lsq")
    _, arguments = commands()["qat", "store"]
    kept = [text for text in arguments if not text.startswith(("name=", "qat", "runs_dir=", "train."))]
    done = cli(*kept, f"checkpoint={path}", "name=again", "runs_dir=anew", verb="evaluate")
    assert done.code == 0, done.err
    (row,) = measured("anew", "*", "W3A3 lsq")
    assert (row["n"], row["plan_hash"], row["size_bytes"]) == (before["n"], before["plan_hash"], before["size_bytes"])
    assert [row["prec1"], row["prec5"]] == pytest.approx([before["prec1"], before["prec5"]], abs=0 if same_bits else 3)
    assert row["loss"] == pytest.approx(before["loss"], rel=0 if same_bits else 1e-2, abs=0)
    assert (row["digest"] == before["digest"]) or not same_bits


def measured(runs, folder, variant):
    """What was recorded of the variant whose label holds this."""
    lines = [line for path in Path(runs).glob(f"*/{folder}/variants/*.jsonl") for line in path.read_text().splitlines()]
    return [row for row in map(json.loads, lines) if variant in row["variant"]]


def test_an_evaluation_is_found_and_its_ranges_give_the_same_numbers(again, same_bits):
    """Two jobs: the stored one, and one that takes its ranges from the stored calibration."""
    (path,) = Path("store").glob("checkpoints/*/calibrations/*/0000.safetensors")
    before, (expected,) = stored(), measured("store", "*", "W8A8 int affine percentile")
    again("evaluated", f"calibrate.file=null,{path}", "-m")
    assert {name: stored()[name] for name in before} == before
    (row,) = measured("store", "*", "ranges_")
    assert row["prec1"] == pytest.approx(expected["prec1"], abs=0 if same_bits else 3)
    assert (row["digest"] == expected["digest"]) or not same_bits
