"""Tables, sentences and figures of sensitivity and allocation, of numbers made up."""

from dataclasses import replace
from pathlib import Path

import pytest

from qexp.analysis.allocation_report import findings, method_frame, write_allocation
from qexp.analysis.allocation_report import markdown as allocation_markdown
from qexp.analysis.ranking import trust
from qexp.analysis.results import Allocated, Allocation, LayerLoss, Sensitivity
from qexp.analysis.sensitivity_report import layer_frame, markdown, summary, write_sensitivity
from qexp.config.analyze import MEASURES
from qexp.reporting.tables.allocations import ChoiceComparison

LAYER = LayerLoss(
    layer="a", bits=4, num_elements=10, size_bytes=5, prec1=80.0, delta_prec1=-1.0, delta_loss=0.1, kl=0.1, n=100, n10=2, n01=1,
    disagreement=3.0, sqnr_db=20.0, noise_to_signal=0.01, mse=0.1, weighted_mse=0.1, fisher=0.1, hessian=-0.1,
)  # fmt: skip
ROWS = tuple(
    replace(
        LAYER, layer=f"layer{k}", bits=bits, kl=kl / bits, sqnr_db=None if k == 3 else 20.0 + k, fisher=None if k == 3 else kl
    )
    for k, kl in enumerate((0.4, 0.3, 0.0, float("inf")))
    for bits in (2, 4)
)
SENSITIVITY = Sensitivity(
    label="W2/4 int affine", subject="digits, custom", checkpoint="a.pt", command="python -m qexp.analyze",
    images="100 select images", prec1=81.0, layers=ROWS, traces={"layer0": (3.0, 0.5)}, trust=trust(ROWS), notes=("a note",),
)  # fmt: skip
CHOICE = Allocated(
    method="exact", measure="kl", bits={"a": 2, "b": 8}, cost=4.0, size_bytes=900, average_bits=4.0, predicted=0.1, kl=0.12,
    prec1=80.0, delta_prec1=-1.0, by_measure=0.1, label="W2/8 int rules", test_prec1=79.0,
)  # fmt: skip
BETTER = ChoiceComparison("exact", "uniform", 1000, 1.5, 0.4, 2.6, 0.95, 0.01, 20, 35, 9.0)


@pytest.fixture
def allocation():
    others = [
        replace(CHOICE, method="greedy", predicted=0.11),
        replace(CHOICE, method="uniform", measure="", bits={"a": 4, "b": 4}, predicted=None, kl=0.3),
        *(replace(CHOICE, measure=name, kl=0.2, label="", test_prec1=None) for name in MEASURES if name != "kl"),
    ]
    return Allocation(
        label="W2/8 int affine", subject="digits, custom", checkpoint="a.pt", command="python -m qexp.analyze",
        images="100 select images",
        budget="4 bits of a weight on average", choices=(CHOICE, *others), comparisons=(BETTER,), gap=10.0,
        dynamic_check="dynamic programming finds the same sum", scored="test images", use="python -m qexp.evaluate policy=mixed",
    )  # fmt: skip


def test_a_sensitivity_in_files():
    files = write_sensitivity(SENSITIVITY, Path("out"))
    names = {str(path.relative_to("out")) for path in files}
    assert {
        "sensitivity.md",
        "sensitivity.csv",
        "trust.csv",
        "figures/map.png",
        "figures/proxies_4_bits.svg",
        "figures/map.pdf",
    } <= names
    assert all(path.stat().st_size for path in files)
    written = write_sensitivity(replace(SENSITIVITY, layers=ROWS[::2]), Path("out"))
    assert not Path("out/figures/proxies_4_bits.svg").exists() and all(path.exists() for path in written)


def test_what_is_not_defined_is_left_empty():
    frame = layer_frame(SENSITIVITY).set_index(["layer", "bits"])
    assert set(frame["variant"]) == {"W2/4 int affine"}
    assert frame.loc[("layer0", 2), "hessian_trace"] == 3.0 and frame["hessian_trace"].isna().sum() == 6
    text = markdown(SENSITIVITY)
    assert "| layer3 | 10 | 2 | 80.00 | -1.00 | 2/1 | 3.00 | inf | +0.1 | exact |" in text
    assert "a note" in text and "most sensitive at 2 bits" in summary(SENSITIVITY)


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.4, 2.6, "better"), (-2.6, -0.4, "worse"), (-0.1, 3.1, "not significantly different")]
)
def test_a_difference_is_called_what_its_interval_says(allocation, low, high, word):
    first = findings(replace(allocation, comparisons=(replace(BETTER, low=low, high=high),)))[0]
    assert first.endswith(f": {word}.") and f"interval {low:+.2f} to {high:+.2f}" in first


def test_an_allocation_in_files(allocation):
    files = write_allocation(allocation, "name: rules\n", "mixed", Path("out"))
    assert {"allocation.md", "methods.csv", "layers.csv", "mixed.yaml"} <= {path.name for path in files}
    assert Path("out/layers.csv").read_text().startswith("layer,exact_kl,greedy_kl,uniform,")
    assert "greedy over exact, in summed KL, is 10 %" in allocation_markdown(allocation)
    assert "1.20 times" in allocation_markdown(allocation)
    frame = method_frame(allocation)
    assert list(frame["test_difference"].dropna()) == [1.5] and list(frame["method"])[:3] == ["exact", "greedy", "uniform"]
