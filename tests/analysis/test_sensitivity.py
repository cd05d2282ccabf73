"""`python -m qexp.analyze task=sensitivity` from the command line to its files, on a network of a few hundred weights."""

import csv
import json
from pathlib import Path

import pytest
import torch

from qexp.quant.affine import fake_quantize_affine
from qexp.quant.qparams import choose_qparams

FOLDER = Path("results/digits/sensitivity")
FAST = (
    "data.num_select=200", "analyze.proxy_images=16", "analyze.probes=3", "evaluate.batch_size=100", "quant=affine", "bits=2",
)  # fmt: skip


@pytest.fixture
def analyze(cli, tiny, network):
    """Run the command on the network's checkpoint; figures are the business of tests/reporting."""
    torch.save(network.state_dict(), "checkpoint.pt")

    def run(*overrides):
        widths = any(text.startswith("analyze.widths=") for text in overrides)  # which go before bits
        fast = [text for text in FAST if not (widths and text.startswith("bits="))]
        return cli("task=sensitivity", "checkpoint=checkpoint.pt", *tiny, *fast, *overrides, verb="analyze")

    return run


def rows(label="W2_int_affine", file="sensitivity.csv"):
    with open(FOLDER / label / file) as handle:
        return list(csv.DictReader(handle))


def stored():
    (path,) = Path("runs/checkpoints").glob("*/sensitivity.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_layer_alone_is_what_evaluate_says_of_it(analyze, cli, tiny):
    """The same numbers by another way: `qexp.evaluate` with a rule for that layer, on the same split."""
    done = analyze()
    assert done.code == 0, done.err
    losses = {row["layer"]: row for row in rows()}
    assert list(losses) == ["0.weight", "5.weight"]
    rule = "policy.rules=[{match: 5.weight, bits: 2}]"
    arguments = (
        "checkpoint=checkpoint.pt",
        *tiny,
        "data.num_select=200",
        "quant=affine",
        "evaluate.split=select",
        "policy=rules",
        rule,
    )
    assert cli(*arguments, verb="evaluate").code == 0
    with open("results/digits/table.csv") as handle:
        scored = {row["variant"]: row for row in csv.DictReader(handle)}
    (quantized,) = (row for name, row in scored.items() if name != "fp32")
    row = losses["5.weight"]
    for ours, theirs in (("prec1", "prec1"), ("kl", "kl")):
        assert float(row[ours]) == pytest.approx(float(quantized[theirs]), rel=1e-5)
    assert float(row["delta_prec1"]) == pytest.approx(float(quantized["prec1"]) - float(scored["fp32"]["prec1"]), abs=1e-9)
    assert float(row["delta_loss"]) == pytest.approx(float(quantized["loss"]) - float(scored["fp32"]["loss"]), rel=1e-3, abs=1e-6)
    assert int(row["n"]) == 200
    assert 100 * (int(row["n01"]) - int(row["n10"])) / 200 == pytest.approx(float(row["delta_prec1"]))
    assert "rank correlation with measured KL at 2 bits" in done.out
    assert "200 select images" in (FOLDER / "W2_int_affine" / "sensitivity.md").read_text()


def test_what_is_stored_is_not_measured_again(analyze, monkeypatch):
    assert analyze().code == 0
    first = stored()
    kinds = [row["kind"] for row in first]
    assert sorted(set(kinds)) == ["float", "loss", "proxy", "reference", "trace"]
    assert kinds.count("loss") == kinds.count("proxy") == 2
    table = rows()

    def never(*arguments, **settings):
        raise AssertionError("measured again")

    for name in ("evaluate", "proxies.fisher_diagonal", "proxies.hessian_traces"):
        monkeypatch.setattr(f"qexp.analysis.layers.{name}", never)
    assert analyze().code == 0
    assert stored() == first and rows() == table
    monkeypatch.undo()


def test_more_widths_and_other_draws_add_what_is_missing(analyze):
    assert analyze().code == 0
    assert analyze("analyze.widths=[3,2]").code == 0
    journal = stored()
    assert [row["kind"] for row in journal].count("loss") == 4 and [row["kind"] for row in journal].count("trace") == 2
    assert [row["bits"] for row in rows("W2-3_int_affine")] == ["2", "3", "2", "3"]
    assert analyze("analyze.probes=4").code == 0
    kinds = [row["kind"] for row in stored()]
    assert kinds.count("loss") == 4 and kinds.count("trace") == 4 and kinds.count("proxy") == 6


def test_folded_networks_are_judged_by_the_weights_that_are_rounded(analyze, network):
    done = analyze("correct.fold_bn=true")
    assert done.code == 0, done.err
    (row,) = (row for row in rows("W2_int_affine_fold_bn") if row["layer"] == "0.weight")
    norm = network[1]
    folded = (network[0].weight * (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)).detach()
    copy = fake_quantize_affine(folded, choose_qparams(folded.min(), folded.max(), 2))
    assert float(row["mse"]) == pytest.approx(float((folded - copy).double().square().mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.num_select=0"], "analyze.split=select: allowed is a split that holds images. Set data.num_select=N"),
        (["analyze.split=test"], "analyze.split=test: allowed is one of select, calib, train"),
        (["analyze.num_images=201"], "analyze.num_images=201: allowed is at most 200"),
        (["analyze.widths=[2,2]"], "a list of different widths"),
        (["analyze.widths=[17]"], "analyze.widths=17: allowed is an integer from 1 to 16"),
        (["analyze.probes=1"], "analyze.probes=1: allowed is an integer of at least 2"),
        (["quant=symmetric", "bits=1"], "bits=1: allowed is at least 2 for quant=symmetric"),
        (["mode=half"], "mode=half: allowed is int with task=sensitivity"),
        (["float_only=true"], "false with task=sensitivity"),
        (["quant.activation.bits=8"], "quant.activation.bits=8: allowed is null with task=sensitivity"),
        (["policy=rules", "policy.rules=[{match: input, role: activation, bits: 8}]"], "rules about weights"),
        (["image=a.png"], "Class scores are of task=profile"),
        (["analyze.bops=5"], "analyze.bops=5. No job reads it: task=allocate would, not task=sensitivity."),
        (["evaluate.split=select"], "Layers are compared on analyze.split"),
        (["analyze.measure=mse"], "analyze.measure=mse. No job reads it: task=allocate would"),
    ],
)
def test_what_cannot_be_is_refused(analyze, arguments, message):
    done = analyze(*arguments)
    assert done.code == 2 and message in done.err, done.err
    assert not Path("results").exists() and not Path("runs/checkpoints").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate", "export"])
def test_the_settings_belong_to_analyze(cli, tiny, verb):
    done = cli(*tiny, "analyze.probes=3", verb=verb)
    assert done.code == 2 and "It belongs to python -m qexp.analyze." in done.err


def test_a_profile_reads_none_of_them(analyze):
    done = analyze("task=profile")
    assert done.code == 2 and "task=sensitivity and allocate would" in done.err
