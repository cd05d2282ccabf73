"""`python -m qexp.analyze task=shrink`: the network that is chosen, what it costs to choose, what is said of it."""

import csv
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from qexp.engine import predictions
from qexp.tracking.journal import Journal

SELECT, BLOCK = 800, 50
BIAS = "analyze.corrections=[bias_empirical]"
SMALL = (
    "data.num_select=800", "evaluate.batch_size=50", "analyze.widths=[2,3,4,8]", "analyze.corrections=[none]",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(cli, tiny, tmp_path_factory):
    """A small network that knows its digits, trained on none of the images that choose or test."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    done = cli(*tiny, "train.epochs=6", "data.num_select=800", "bits=8", f"runs_dir={runs}", f"results_dir={runs}/results")
    assert done.code == 0, done.err
    (path,) = runs.glob("trainings/*/epochs/0006.safetensors")
    return path


@pytest.fixture
def shrink(cli, tiny, checkpoint):
    return lambda *overrides: cli("task=shrink", f"checkpoint={checkpoint}", *tiny, *SMALL, *overrides, verb="analyze")


def folder_of(done):
    assert done.code == 0, done.err
    return Path(re.search(r"written: \d+ files in (\S+)/ ", done.out)[1])


def table(folder):
    with open(folder / "candidates.csv") as handle:
        return list(csv.DictReader(handle))


def chosen(folder):
    return [row for row in table(folder) if row["chosen"] == "True"]


def capital(differences, null):
    """The bettor's capital, image by image and stake by stake: nothing of `qexp.stats`."""
    differences, total = np.asarray(differences), 0.0
    for place in range(12):
        part = 1 / (1 + place) / sum(1 / (1 + other) for other in range(12))
        total += part * np.prod(1 + 0.98 * 2 ** (-place / 2) * (differences - null))
    return total


def passes(differences, margin):
    """Brute force over all images: does the test ever say that the loss is below the margin, before it says the opposite?"""
    for stop in range(BLOCK, len(differences) + 1, BLOCK):
        seen = differences[:stop]
        if capital(seen, -margin / 100) >= 20:
            return True
        if capital([-one for one in seen], margin / 100) >= 20:
            return False
        if capital([*seen, *[0] * (len(differences) - stop)], -margin / 100) < 20:
            return False
    return False


def test_the_choice_is_the_smallest_of_the_grid_that_passes_on_all_images(shrink, cli, tiny, checkpoint):
    done = shrink("analyze.max_loss=5", "analyze.policies=[uniform]")
    folder = folder_of(done)
    (choice,) = chosen(folder)
    # Every candidate on every image, as qexp.evaluate does it.
    scored = cli(
        f"checkpoint={checkpoint}", *tiny, "data.num_select=800", "evaluate.split=select", "bits=2,3,4,8",
        "quant=symmetric_restricted,affine", "quant.weight.granularity=per_tensor,per_channel", "name=grid", "-m",
        verb="evaluate",
    )  # fmt: skip
    assert scored.code == 0, scored.err
    with open("results/grid/table.csv") as handle:
        rows = {row["variant"]: row for row in csv.DictReader(handle)}
    order = torch.randperm(SELECT, generator=torch.Generator().manual_seed(0))
    (home,) = Path("runs/checkpoints").iterdir()

    def right(row):
        (stored,) = (home / "predictions" / row["variant_key"]).glob("*.safetensors")
        return predictions.load(stored).right[order].int().numpy()

    fp32 = right(rows.pop("fp32"))
    assert len(rows) == 16
    passed = {name: passes((right(row) - fp32).tolist(), 5) for name, row in rows.items()}
    assert 0 < sum(passed.values()) < 16
    smallest = min((int(rows[name]["size_bytes"]), name) for name, holds in passed.items() if holds)
    assert (int(choice["size_bytes"]), choice["label"]) == smallest
    # What ran said of each what all of the images say, and took fewer.
    ran = [row for row in table(folder) if row["outcome"] != "not run"]
    assert {row["label"]: row["outcome"] == "passed" for row in ran} == {row["label"]: passed[row["label"]] for row in ran}
    used, full = map(int, re.search(r"(\d+) image evaluations of (\d+)", done.out).groups())
    assert full == 17 * SELECT and used == sum(int(row["n"]) for row in ran) + max(int(row["n"]) for row in ran)
    for row in ran:
        flips = (right(rows[row["label"]]) - fp32)[: int(row["n"])]
        assert (int(row["n10"]), int(row["n01"])) == (int((flips < 0).sum()), int((flips > 0).sum()))


def test_bits_per_layer_are_smaller_still_and_the_commands_make_the_network_again(shrink, cli):
    done = shrink("analyze.max_loss=3", "analyze.steps=3", "name=one")
    folder = folder_of(done)
    rows = table(folder)
    uniform = next(row for row in rows if row["outcome"] == "passed" and row["policy"] == "uniform")
    (choice,) = chosen(folder)
    assert choice["policy"] == "mixed" and int(choice["size_bytes"]) < int(uniform["size_bytes"])
    mixed = [row["widths"] for row in rows if row["policy"] == "mixed"]
    assert len(set(mixed)) == len(mixed) <= 3
    verdict = re.search(r"SHOWN: .*Prec@1 ([\d.]+) to ([\d.]+) \([+-][\d.]+ points; lost/won (\d+)/(\d+)", done.out)
    lost, won = int(verdict[3]), int(verdict[4])
    text = (folder / "shrink.md").read_text()
    assert verdict[0] in text and "## Bits" in text
    command = shlex.split(re.search(r"^  (python -m qexp\.evaluate .*)$", done.out, re.MULTILINE)[1])
    again = cli(*(word for word in command[3:] if not word.startswith("name=")), "name=again", verb="evaluate")
    assert again.code == 0, again.err
    with open("results/again/table.csv") as handle:
        (row,) = (row for row in csv.DictReader(handle) if row["variant"] != "fp32")
    assert f"{float(row['prec1']):.2f}" == verdict[2] and int(row["size_bytes"]) == int(choice["size_bytes"])
    assert (int(row["lost"]), int(row["gained"])) == (lost, won)
    export = shlex.split(re.search(r"^  (python -m qexp\.export .*)$", done.out, re.MULTILINE)[1])
    written = cli(*export[3:], "export.cost=false", verb="export")
    assert written.code == 0, written.err
    assert list(Path("runs/exports").rglob("network.onnx"))


def test_a_second_command_counts_nothing_again_and_a_second_look_at_the_test_images_is_told(shrink):
    first = folder_of(shrink("analyze.max_loss=5", "analyze.policies=[uniform]"))
    (journal,) = Path("runs/checkpoints").glob("*/shrink.jsonl")
    before, numbers = journal.read_text(), table(first)
    done = shrink("analyze.max_loss=5", "analyze.policies=[uniform]")
    assert table(folder_of(done)) == numbers and journal.read_text() == before
    assert "also tested" not in done.out
    done = shrink("analyze.max_loss=30", "analyze.policies=[uniform]")
    assert "or some of them, also tested of this checkpoint: 1 other network (W" in done.out
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"float", "block"}
    assert len({(row["kind"], row["key"]) for row in rows}) == len(rows)
    assert list(Journal(journal, needs=("kind", "key", "values")).rows())


def test_a_look_at_the_test_images_is_counted_whatever_else_the_command_says(shrink):
    few = ("analyze.policies=[uniform]", "analyze.widths=[8]", "analyze.schemes=[affine]", "analyze.granularities=[per_tensor]")
    assert "also tested" not in shrink("analyze.max_loss=20", *few).out
    done = shrink("analyze.max_loss=20", *few, "data.num_select=700", "seed=3")
    assert done.code == 0 and "also tested" not in done.out, done.err  # the same network at the same margin: the same look
    done = shrink("analyze.max_loss=25", *few, "data.num_select=700")
    assert "also tested of this checkpoint: this network at 1 other margin (20 points). " in done.out
    done = shrink("analyze.max_loss=20", *few, "data.split_seed=5", "evaluate.num_images=300", "analyze.num_images=700")
    told = "1 other margin (25 points); this network at this margin on 1 other selection of images (n = 360)"
    assert told in done.out
    done = shrink("analyze.max_loss=20", *few[:2], "analyze.schemes=[symmetric_restricted]", few[3], "data.num_calib=20")
    assert "also tested of this checkpoint: 1 other network (W8 " in done.out
    assert len(list(Path("runs/confirmations").glob("*.jsonl"))) == 1


@pytest.mark.parametrize("margin", [5, 25])
def test_counts_of_two_float_networks_do_not_mix(shrink, margin):
    """Whether a race goes on behind what is stored, or all is stored and only the test is left."""
    few = ("analyze.policies=[uniform]", "analyze.widths=[8]", "analyze.schemes=[affine]")
    assert shrink("analyze.max_loss=25", *few).code == 0
    (journal,) = Path("runs/checkpoints").glob("*/shrink.jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "float":
            row["values"] |= {"digest": "another", "loss": 9.0}
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = shrink(f"analyze.max_loss={margin}", *few)
    assert done.code == 2 and "one whose float network scores as it did when its numbers were stored" in done.err, done.out
    assert [json.loads(line) for line in journal.read_text().splitlines()] == rows


def test_the_claim_has_the_name_and_the_alarms_of_what_was_scored(shrink):
    few = (
        "analyze.policies=[uniform]",
        "analyze.widths=[8]",
        "analyze.schemes=[affine]",
        "analyze.corrections=[fold_bn+equalize]",
    )
    assert shrink("analyze.max_loss=25", *few).code == 0
    for path in Path("runs/checkpoints").glob("*/variants/[!.]*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"alarms": ["weights not in use: a"]}) + "\n" for row in rows))
    done = shrink("analyze.max_loss=25", *few)
    text = (folder_of(done) / "shrink.md").read_text()
    with open("results/digits/table.csv") as handle:
        (row,) = (row for row in csv.DictReader(handle) if row["variant"] != "fp32")
    for told in (done.out, text):
        assert f"SHOWN: {row['variant']} loses less" in told and "ALARM: weights not in use: a." in told


def test_a_candidate_has_the_name_of_what_its_corrections_did(cli, tiny, tmp_path):
    """In a network without batch norm `fold_bn` changes nothing; counts that are stored know it too."""
    make = "def plain(num_classes, in_channels):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    source = f"from torch import nn\n\n\n{make}"
    (tmp_path / "plain.py").write_text(source)
    torch.save({"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}, tmp_path / "plain.pt")
    network = (*tiny, f"model.factory={tmp_path}/plain.py:plain", f"checkpoint={tmp_path}/plain.pt")
    grid = ("analyze.widths=[8]", "analyze.schemes=[affine]", "analyze.granularities=[per_tensor]", "analyze.policies=[uniform]")
    command = ("task=shrink", *network, *SMALL, *grid, "analyze.corrections=[fold_bn]", "analyze.max_loss=25")
    for _ in range(2):
        done = cli(*command, verb="analyze")
        (row,) = table(folder_of(done))
        assert (row["outcome"], row["corrections"]) == ("passed", "fold_bn") and "fold_bn" not in row["label"], done.out


def test_where_no_candidate_passes_nothing_is_shown_and_nothing_is_tested(shrink):
    done = shrink("analyze.max_loss=0.1", "analyze.num_images=100")
    folder = folder_of(done)
    assert (
        "NOTHING WAS SHOWN: on 100 select images no candidate was seen to lose less than 0.1 points; nothing was tested"
        in done.out
    )
    assert not chosen(folder) and "## Use it" not in (folder / "shrink.md").read_text()
    assert not list(Path("runs/checkpoints").glob("*/variants"))


def test_a_choice_that_the_other_images_do_not_confirm_is_told_and_no_other_is_tried(shrink):
    done = shrink("analyze.max_loss=5", "evaluate.num_images=20", "analyze.num_images=800", "analyze.policies=[uniform]")
    assert done.code == 0, done.err
    assert re.search(r"NOTHING WAS SHOWN: .* passed on the images that chose it, but not on the others", done.out)
    assert len(list(Path("runs/checkpoints").glob("*/variants/[!.]*"))) == 2  # float and the choice


def test_activations_are_quantized_where_that_is_asked(shrink):
    done = shrink(
        "analyze.max_loss=20", "quant.activation.bits=8", "data.num_calib=50", "analyze.widths=[4]", "analyze.policies=[uniform]"
    )
    folder = folder_of(done)
    assert folder.name.endswith("A8") and all("A8" in row["label"] for row in table(folder))
    assert "activations at 8 bits in every candidate" in done.out
    assert "quant.activation.bits=8" in re.search(r"^  (python -m qexp\.evaluate .*)$", done.out, re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "analyze.max_loss=None: allowed is points of Prec@1 for task=shrink"),
        (["analyze.max_loss=0"], "analyze.max_loss=0"),
        (["analyze.max_loss=1", "bits=4"], "task=shrink tries those of analyze.widths"),
        (["analyze.max_loss=1", "quant=affine"], "task=shrink tries those of analyze.schemes"),
        (["analyze.max_loss=1", "correct.fold_bn=true"], "task=shrink tries those of analyze.corrections"),
        (["analyze.max_loss=1", "policy=first_last"], "task=shrink tries those of analyze.policies"),
        (["analyze.max_loss=1", "analyze.probes=3"], "task=sensitivity and allocate would, not task=shrink"),
        (["analyze.max_loss=1", "quant.weight.pow2_round=nearest"], "quant=pow2_scale would"),
        (["analyze.max_loss=1", "analyze.schemes=[affin]"], "Did you mean affine?"),
        (["analyze.max_loss=1", "analyze.corrections=[equalize]"], "correct.equalize=true: allowed is true only with"),
        (["analyze.max_loss=1", "analyze.corrections=[bias_analytic+bias_empirical]"], "one of the biases"),
        (["analyze.max_loss=1", "analyze.policies=[mixed]"], "allowed is uniform or first_last in it"),
        (["analyze.max_loss=1", "analyze.schemes=[log2]", "analyze.widths=[12]"], "allowed is some width from 2 to 8"),
        (["analyze.max_loss=1", "analyze.schemes=[]"], "analyze.schemes=[]: allowed is a list of different schemes"),
        (["analyze.max_loss=1", "evaluate.split=select"], "evaluate.split=select: allowed is another split"),
        (["analyze.max_loss=1", "evaluate.split=train"], "evaluate.split=train: allowed is test, select or calib"),
        (["analyze.max_loss=1", BIAS, "calibrate.split=test"], "calibrate.split=test: allowed is calib or train"),
        (["analyze.max_loss=1", BIAS, "calibrate.split=select"], "calibrate.split=select: allowed is calib or train"),
        (["analyze.max_loss=1", BIAS, "analyze.split=train", "calibrate.split=train"], "allowed is calib or select for"),
        (["analyze.max_loss=1", "evaluate.keep=none"], "evaluate.keep=none"),
        (["analyze.max_loss=1", "mode=half"], "mode=half"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(shrink, arguments, message):
    done = shrink(*arguments)
    assert done.code == 2 and message in done.err, done.err
    assert not Path("results/digits").exists() and not list(Path("runs").glob("checkpoints/*/shrink.jsonl"))


def test_the_brute_force_of_these_tests_is_a_fair_game():
    """Where the loss is the margin, the capital stays what it was on average."""
    chances = {-1: 0.06, 0: 0.93, 1: 0.01}
    assert math.fsum(chance * capital([one], -0.05) for one, chance in chances.items()) == pytest.approx(1.0)
    assert np.isclose(sum(chances.values()), 1)
