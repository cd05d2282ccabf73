"""Policies that give layers widths of their own: their row says these, and stands at their mean."""

import json

import pandas as pd
import pytest

from qexp.base.label import Label
from qexp.reporting.figures.accuracy import prec1_by_bits
from qexp.reporting.figures.cost import prec1_by_size
from qexp.reporting.frames.layers import with_choices
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.summary import summarize
from qexp.reporting.report import write_report


def plan(*chosen):
    return json.dumps([{"bits": bits, "num_elements": count, "kind": "conv", "role": "weight"} for bits, count in chosen])


@pytest.fixture
def runs_dir(write, training):
    """Uniform copies of 2 and 4 bits, a first and last layer at 8, and one of 3 to 6 bits whose dial is at its unused 8."""
    rows = training(["W8 int", "W4 int", "W2 int", "W3 int"], epochs=1)
    changed = {
        "W8 int": ("rules", plan((3, 500), (4, 300), (6, 200), (None, 50))),
        "W4 int": ("uniform", plan((4, 1000))),
        "W2 int": ("first_last", plan((2, 900), (8, 100))),
        "W3 int": ("rules", plan((3, 1000))),
    }
    named = {"way": "int", "weights": [3, 4, 6], "activations": [], "words": ["rules"]}
    for row in rows:
        policy, text = changed.get(row.get("name") or row.get("variant"), ("", ""))
        if row["kind"] == "run" and text:
            row["artifacts"] = {"plan.json": text}
        elif row["kind"] == "record" and policy:
            row["policy"] = policy
            if row["variant"] == "W8 int":
                row |= {"named": named, "variant": "W3/4/6 int rules", "size_bytes": 1234}
    return write(rows)


def test_bits_are_the_mean_of_what_was_chosen(runs_dir, tmp_path):
    table = summarize(load_records("exp", runs_dir)).set_index("variant")
    assert table["bits"].to_dict() == {"fp32": 32, "W4 int": 4, "W2 int": 2, "W3 int": 3, "W3/4/6 int rules": 3.9}
    assert table["widths"].to_dict() == dict.fromkeys(table.index, "") | {"W3/4/6 int rules": "3-6, mean 3.9"}
    report = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results")
    assert "3-6, mean 3.9" in report.table and "| W4 int | 4 |" in (report.folder / "table.md").read_text()
    assert ",3.9," in (report.folder / "table.csv").read_text() and ",32," in (report.folder / "table.csv").read_text()
    assert (
        "Widths" in (report.folder / "report.html").read_text()
        and "<dd>4; 3-6, mean 3.9; 3; 2</dd>" in (report.folder / "report.html").read_text()
    )


def test_figures_place_it_at_its_mean(runs_dir):
    records = load_records("exp", runs_dir)
    axes = prec1_by_bits(records).axes[-1]
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["2", "3", "4"]
    places = {round(float(x), 1) for line in axes.get_lines() for x in line.get_xdata()}
    assert 1.9 in places  # between the ticks of 3 and 4
    texts = [text.get_text() for text in prec1_by_size(records).legends[0].get_texts()]
    assert "3.9 bits on average" in texts and "4 bits" in texts and not any(text.startswith("8") for text in texts)


def test_what_chose_the_widths_is_said(runs_dir, tmp_path):
    folder = tmp_path / "results" / "exp" / "allocation" / "x"
    folder.mkdir(parents=True)
    methods = {
        "method": ["exact", "greedy", "uniform"],
        "label": ["W3/4/6 int rules"] * 2 + ["W4 int"],
        "size_bytes": [1234, 1200, 5],
    }
    pd.DataFrame(methods).to_csv(folder / "methods.csv", index=False)
    variants = set(with_choices(load_records("exp", runs_dir), tmp_path / "results" / "exp")["variant"])
    assert variants == {"fp32", "W4 int", "W2 int", "W3 int", "W3/4/6 int rules exact"}


def test_what_chose_the_widths_stands_for_the_digits_of_a_key(runs_dir, tmp_path):
    folder = tmp_path / "results" / "exp" / "allocation" / "x"
    folder.mkdir(parents=True)
    label = Label("int", (3, 4, 6), words=("rules", "8cc9"))
    methods = pd.DataFrame({"method": ["greedy"], "label": [label.text], "size_bytes": [1234]})
    methods.to_csv(folder / "methods.csv", index=False)
    records = load_records("exp", runs_dir)
    mine = records["variant"] == "W3/4/6 int rules"
    named = [label if own else other for own, other in zip(mine, records["named"], strict=True)]
    records = records.assign(named=named, variant_key=records["variant_key"].mask(mine, "8cc9ffff"))
    chosen = with_choices(records, tmp_path / "results" / "exp")
    assert set(chosen["variant"][mine]) == {"W3/4/6 int rules greedy"}
    other = records["variant"] == "W2 int"
    twin = Label("int", (3, 4, 6), words=("rules", "ea5a"))  # of the same widths, chosen by hand
    records = records.assign(named=[twin if own else label for own, label in zip(other, named, strict=True)], size_bytes=7)
    records = records.assign(variant_key=records["variant_key"].mask(other, "ea5affff"))
    kept = with_choices(records, tmp_path / "results" / "exp")["variant"]
    assert set(kept[mine | other]) == {"W3/4/6 int rules 8cc9", "W3/4/6 int rules ea5a"}


def test_without_such_a_policy_nothing_changes(write, training):
    records = load_records("exp", write(training(["W4 int"], epochs=1)))
    assert "widths" not in records and records["bits"].dtype.kind == "i"
