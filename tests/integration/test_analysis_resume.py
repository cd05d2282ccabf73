"""An analysis that was killed goes on where it stopped, and says what an undisturbed one says."""

import json
import runpy
import signal
from pathlib import Path

import pytest
import torch

from qexp.base.faults import VARIABLE


def rows(file="sensitivity.jsonl"):
    paths = list(Path("runs/checkpoints").glob(f"*/{file}"))
    text = paths[0].read_text() if paths else ""
    return [json.loads(line) for line in text.splitlines()[: text.count("\n")]]


@pytest.fixture
def command(tiny, tmp_path):
    make = runpy.run_path(str(Path(__file__).parents[1] / "networks.py"))["tiny"]
    torch.manual_seed(0)
    torch.save(make(10, 1).state_dict(), tmp_path / "checkpoint.pt")
    fast = ("data.num_select=100", "analyze.proxy_images=8", "analyze.probes=2", "analyze.widths=[2,3]", "quant=affine")
    return ("task=sensitivity", f"checkpoint={tmp_path / 'checkpoint.pt'}", *tiny, *fast)


@pytest.mark.parametrize(
    "faults",
    [
        ("journal.torn:3",),  # in the middle of the third row
        pytest.param(("journal.written:2", "journal.torn:3"), marks=pytest.mark.slow),  # and that of what is left then
    ],
    ids=["once", "twice"],
)
def test_a_killed_analysis_goes_on(warm, command, monkeypatch, tmp_path, faults):
    seen = []
    for fault in faults:
        child = warm.start(*command, verb="analyze", **{VARIABLE: fault})
        assert child.wait() == -signal.SIGKILL, child.text
        kept = rows()
        assert len(kept) > len(seen) and kept[: len(seen)] == seen
        assert not Path("results").exists()
        seen = kept
    child = warm.start(*command, verb="analyze")
    assert child.wait() == 0, child.text
    found, table = rows(), Path("results/digits/sensitivity/W2-3_int_affine/sensitivity.csv").read_text()
    assert found[: len(seen)] == seen
    assert len({(row["kind"], row["key"]) for row in found}) == len(found) == 2 + 2 + 2 * 4
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    child = warm.start(*command, verb="analyze")
    assert child.wait() == 0, child.text
    whole = {(row["kind"], row["key"]): row for row in rows()}
    assert whole == {(row["kind"], row["key"]): row for row in found}
    assert Path("results/digits/sensitivity/W2-3_int_affine/sensitivity.csv").read_text() == table


def test_a_killed_search_goes_on(warm, command, monkeypatch, tmp_path):
    """`task=shrink`: blocks that were counted stay, and the choice is that of an undisturbed search."""
    kept = [word for word in command if word.startswith(("checkpoint=", "data", "train=", "model", "device=", "track", "draw"))]
    command = ("task=shrink", *kept, "evaluate.batch_size=10", "analyze.widths=[2,3]", "analyze.max_loss=20")
    child = warm.start(*command, verb="analyze", **{VARIABLE: "journal.torn:6"})
    assert child.wait() == -signal.SIGKILL, child.text
    seen = rows("shrink.jsonl")
    assert len(seen) == 5 and {row["kind"] for row in seen} == {"float", "block"} and not Path("results").exists()
    child = warm.start(*command, verb="analyze")
    assert child.wait() == 0, child.text
    ended, table = rows("shrink.jsonl"), Path("results/digits/shrink/max_loss_20/candidates.csv").read_text()
    assert ended[:5] == seen and len({(row["kind"], row["key"]) for row in ended}) == len(ended)
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    child = warm.start(*command, verb="analyze")
    assert child.wait() == 0, child.text
    assert {(row["kind"], row["key"]): row for row in rows("shrink.jsonl")} == {(row["kind"], row["key"]): row for row in ended}
    assert Path("results/digits/shrink/max_loss_20/candidates.csv").read_text() == table
