"""`python -m qexp.analyze task=allocate`: what is chosen, what it costs, and the file that other commands take."""

import csv
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from qexp.reporting.frames.layers import load_layers

FAST = (
    "data.num_select=200", "evaluate.num_images=100", "analyze.num_images=100", "analyze.proxy_images=16", "analyze.probes=3",
    "quant=affine",
)  # fmt: skip
MACS = {"0.weight": 8 * 9 * 16, "5.weight": 32 * 10}  # of tests/networks.py:tiny on digits, 8 x 8 pixels
COUNTS = {"0.weight": 72, "5.weight": 320}


@pytest.fixture
def allocate(cli, tiny):
    make = runpy.run_path(str(Path(__file__).parents[1] / "networks.py"))["tiny"]
    torch.manual_seed(0)
    network = make(10, 1)
    network[1].running_mean.uniform_(-0.2, 0.2)
    network[1].running_var.uniform_(0.5, 2)
    torch.save(network.state_dict(), "checkpoint.pt")
    return lambda *overrides: cli("task=allocate", "checkpoint=checkpoint.pt", *tiny, *FAST, *overrides, verb="analyze")


def read(folder, file):
    with open(folder / file) as handle:
        return list(csv.DictReader(handle))


def folder_of(done):
    return Path(re.search(r"written: \d+ files in (\S+)/ ", done.out)[1])


def bits_of(folder, method="exact_kl"):
    return {row["layer"]: int(row[method]) for row in read(folder, "layers.csv")}


def test_average_bits_are_kept_and_the_file_is_what_other_commands_take(allocate, cli, tiny):
    done = allocate("analyze.average_bits=4")
    assert done.code == 0, done.err
    folder = folder_of(done)
    bits, methods = bits_of(folder), {(row["method"], row["measure"]): row for row in read(folder, "methods.csv")}
    assert sum(COUNTS[name] * width for name, width in bits.items()) <= 4 * 392
    policy = yaml.safe_load((folder / "policy" / "mixed.yaml").read_text())
    assert {rule["match"]: rule["bits"] for rule in policy["rules"]} == bits
    exact, uniform = methods["exact", "kl"], methods["uniform", ""]
    assert float(exact["predicted"]) <= float(uniform["predicted"])
    assert {"sqnr", "fisher", "hessian", "mse", "weighted_mse", "loss"} <= {measure for _, measure in methods}
    assert "dynamic programming finds the same sum" in done.out
    assert set(load_layers("results/digits")["task"]) == {"sensitivity"}  # of which the report draws what single layers cost
    # The command that it shows, as a user would paste it.
    command = shlex.split(re.search(r"^  (python -m qexp\.evaluate .*)$", done.out, re.MULTILINE)[1])
    assert command[3].startswith("--config-dir=")
    again = cli(*command[3:], "name=again", verb="evaluate")
    assert again.code == 0, again.err
    variants = {row["variant"]: row for row in read(Path("results/again"), "table.csv")}
    (mixed,) = (row for name, row in variants.items() if name != "fp32")
    assert float(mixed["prec1"]) == pytest.approx(float(exact["test_prec1"]))
    assert int(mixed["size_bytes"]) == int(exact["size_bytes"])
    trained = cli(*tiny, command[3], "policy=mixed", "quant=affine", "name=trained")
    assert trained.code == 0, trained.err
    assert len(read(Path("results/trained"), "table.csv")) == 2


def test_what_was_chosen_is_in_the_experiment_s_own_table(allocate):
    done = allocate("analyze.average_bits=3", "analyze.widths=[2,3,4]")
    assert done.code == 0, done.err
    names = [row["variant"] for row in read(Path("results/digits"), "table.csv")]
    assert names[0] == "fp32" and "W3 int affine" in names
    text = (folder_of(done) / "allocation.md").read_text()
    if bits_of(folder_of(done)) != {"0.weight": 3, "5.weight": 3}:
        assert re.search(r"exact against uniform: [+-]\d+\.\d\d points, 95 % interval", text)
        assert any(name.endswith(" exact") for name in names), "the table says what chose, without another report"


def test_a_budget_in_bytes_is_of_the_whole_state_dict(allocate):
    done = allocate("analyze.budget_bytes=560")
    assert done.code == 0, done.err
    for row in read(folder_of(done), "methods.csv"):
        assert int(row["size_bytes"]) <= 560 and int(float(row["cost"])) == int(row["size_bytes"])


def test_bit_operations_count_the_activations_too(allocate):
    budget = 8 * 4 * sum(MACS.values())
    done = allocate(f"analyze.bops={budget}", "quant.activation.bits=8", "data.num_calib=50")
    assert done.code == 0, done.err
    folder = folder_of(done)
    bits = bits_of(folder)
    spent = sum(8 * bits[name] * MACS[name] for name in MACS)
    (row,) = (row for row in read(folder, "methods.csv") if (row["method"], row["measure"]) == ("exact", "kl"))
    assert spent <= budget and float(row["cost"]) == spent
    assert "activations at 8 bits" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of analyze.budget_bytes, analyze.average_bits, analyze.bops"),
        (["analyze.average_bits=4", "analyze.bops=9"], "analyze=average_bits=4.0, bops=9: allowed is exactly one"),
        (["analyze.average_bits=1.5"], "analyze.average_bits=1.5: allowed is at least 2, the cost of the narrowest widths"),
        (["analyze.average_bits=0.5"], "analyze.average_bits=0.5"),
        (["analyze.budget_bytes=100"], "analyze.budget_bytes=100: allowed is at least"),
        (["analyze.average_bits=4", "evaluate.split=select"], "evaluate.split=select: allowed is another split"),
        (["analyze.average_bits=4", "quant=symmetric", "analyze.widths=[1,4]"], "analyze.widths=1: allowed is at least 2"),
        (["analyze.average_bits=4", "analyze.measure=prec1"], "analyze.measure=prec1"),
    ],
)
def test_what_cannot_be_is_refused(allocate, arguments, message):
    done = allocate(*arguments)
    assert done.code == 2 and message in done.err, done.err
    assert not Path("results/digits").exists() and not list(Path("runs").glob("checkpoints/*/sensitivity.jsonl"))
