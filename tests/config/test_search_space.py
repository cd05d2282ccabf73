"""The grid of `task=shrink`: what its lists make together, and that its document names each."""

import re
from pathlib import Path

import pytest

from qexp.config.correct import CORRECTIONS
from qexp.config.search_space import candidates
from qexp.config.validate import validate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def listed(compose, job):
    def listed(**changes):
        values = job({"checkpoint": "x", "task": "shrink", **changes}, compose("data=digits", verb="analyze"))
        return candidates(validate(values))

    return listed


def test_the_lists_make_a_grid(listed):
    assert len(listed()) == 6 * 2 * 2 * 3
    one = listed(**{"analyze.policies": ["first_last"], "analyze.corrections": ["fold_bn+equalize+bias_empirical"],
                    "analyze.schemes": ["mxfp4", "log2"], "analyze.widths": [4, 8, 12]})  # fmt: skip
    assert [(c.config.quant.name, c.config.bits) for c in one] == [("mxfp4", 4)] + [("log2", 4), ("log2", 8)] * 2
    correct = one[0].config.correct
    assert (correct.fold_bn, correct.equalize, correct.bias, correct.adaround) == (True, True, "empirical", False)
    assert {c.config.policy.name for c in one} == {"first_last"}


def test_the_document_names_every_correction():
    (row,) = re.findall(
        r"^ *\| `analyze\.corrections` \|.*joined by `\+`: (.*) \(\[ptq", (ROOT / "docs/analyze.md").read_text(), re.MULTILINE
    )
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(CORRECTIONS)
