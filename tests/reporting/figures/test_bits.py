"""Prec@1 against weight bits: intervals of single seeds, and small multiples."""

from itertools import product

import pytest
from matplotlib.collections import LineCollection

from qexp.reporting.figures.accuracy import prec1_by_bits
from qexp.reporting.figures.bits_lines import facet_of
from qexp.reporting.frames.load import load_records
from qexp.stats.interval import wilson


def test_a_single_seed_has_intervals_that_the_axis_holds(write, training):
    records = load_records("exp", write(training(["W8 int", "W4 int", "W2 int"])))
    figure = prec1_by_bits(records)
    assert "95 % intervals" in figure.get_suptitle()
    magnified, everything = figure.axes
    ends = [end for axes in figure.axes for low, high in _bars(axes) for end in ((axes, low), (axes, high))]
    assert len(_bars(everything)) == 3 and len(_bars(magnified)) == 2  # the one beyond its axis would be cut
    assert all(axes.get_ylim()[0] < end < axes.get_ylim()[1] for axes, end in ends)
    last = records[(records["variant"] == "W4 int") & (records["epoch"] == 8)].iloc[0]
    expected = wilson(round(last["prec1"] * 10), 1000)
    assert (pytest.approx(expected.low), pytest.approx(expected.high)) in _bars(everything)


def _bars(axes):
    """Ends of the vertical bars of an axis."""
    segments = [part for drawn in axes.collections if isinstance(drawn, LineCollection) for part in drawn.get_segments()]
    return [(part[0][1], part[1][1]) for part in segments]


def _of_schemes(training, schemes, widths=(8, 4)):
    """The rows of a training with a copy for each scheme, granularity and width."""
    rows = training([f"W{bits} int" for bits in widths])
    copies = [row for row in rows if row["kind"] == "record" and row["variant"] != "fp32"]
    return [row for row in rows if row not in copies] + [
        row | {"variant": name, "variant_key": name, "plan_hash": name, "quant": scheme, "granularity": granularity}
        for row in copies
        for scheme in schemes
        for granularity in ("per_tensor", "per_channel")
        for name in [f"{row['variant']} {scheme} {granularity}"]
    ]


def test_many_lines_are_small_multiples(write, training):
    schemes = ["linear", "affine", "symmetric", "apot", "log2"]
    figure = prec1_by_bits(load_records("exp", write(_of_schemes(training, schemes))))
    assert [axes.get_title(loc="left") for axes in figure.axes] == schemes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fp32", "int, per_tensor", "int, per_channel"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1 and figure.get_figheight() <= 11
    few = prec1_by_bits(load_records("exp", write(_of_schemes(training, schemes[:4]))))
    assert len(few.axes) == 1 and len(few.legends[0].get_texts()) == 9


def test_panels_are_made_by_what_leaves_few_lines_in_each():
    def lines(schemes, granularities, widths=("A32",)):
        return [("int", ("uniform", *parts[:2], "none", parts[2])) for parts in product(schemes, granularities, widths)]

    names = [f"scheme{number}" for number in range(9)]
    assert facet_of(lines(names[:4], ("per_tensor", "per_channel"))) is None
    assert facet_of(lines(names[:5], ("per_tensor", "per_channel"))) == 1
    assert facet_of(lines(names[:1], ("per_tensor", "per_channel"), [f"A{bits}" for bits in range(2, 8)])) == 2
    assert facet_of([("int", ("uniform", f"scheme{number}", "per_tensor", "none", "A32")) for number in range(20)]) is None


def test_a_single_one_among_seeds_has_its_interval_and_the_heading_says_so(write, training):
    parts = [
        training(names, training=f"{seed}{seed}" * 8, params={"seed": seed}, seed=seed)
        for seed, names in ((1, ["W8 int", "W4 int"]), (2, ["W8 int"]))
    ]
    records = load_records("exp", write(*parts))
    figure = prec1_by_bits(records)
    assert "mean and sd over seeds, of a single one its 95 % interval" in figure.get_suptitle()
    alone = records[(records["variant"] == "W4 int") & (records["epoch"] == 8)]["prec1"].item()
    expected = wilson(round(alone * 10), 1000)
    assert (pytest.approx(expected.low), pytest.approx(expected.high)) in _bars(figure.axes[0])
