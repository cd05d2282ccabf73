"""Copies are called by what tells them apart; what all have in common is said once."""

import csv
import re

import numpy as np
import pandas as pd

from qexp.base.label import Label
from qexp.reporting.frames.names import shared_words, short_names
from qexp.reporting.report import write_report

IMAGES = np.arange(2000)
WORDS = ["symmetric_restricted", "per_channel", "fold_bn"]


def stored(rows, *, folded=True):
    """The rows with labels in parts, all of them of one scheme, all but W2 with a correction."""
    for row in rows:
        if row["kind"] == "record" and row["variant"] != "fp32":
            width, way = row["variant"].split()
            words = [*WORDS[:2], *(WORDS[2:] if folded or width != "W2" else ())]
            parts = {"way": way, "weights": [int(width[1:])], "activations": [], "words": words}
            row |= {"named": parts, "variant": " ".join([width, way, *words]), "quant": WORDS[0], "granularity": WORDS[1]}
    return rows


def report_of(predicted, write, tmp_path, right, **more):
    rows = stored(predicted(right, folder=tmp_path / "runs"), **more)
    return write_report("exp", runs_dir=write(rows), results_dir=tmp_path / "results")


def test_what_all_copies_have_is_said_once(predicted, write, tmp_path):
    right = {"fp32": IMAGES < 1800, "W8 int": (IMAGES > 3) & (IMAGES < 1803), "W4 int": IMAGES < 1700, "W2 int": IMAGES < 300}
    report = report_of(predicted, write, tmp_path, right)
    caption, *_ = report.table.splitlines()
    assert caption.endswith("all copies fold_bn") and "quant symmetric_restricted, granularity per_channel" in caption
    page = (report.folder / "report.html").read_text(encoding="utf-8")
    text = (report.folder / "table.md").read_text(encoding="utf-8")
    for written in (page, text, report.table, (report.folder / "table.tex").read_text(encoding="utf-8").replace("\\", "")):
        assert "W8 int" in written and "W8 int symmetric" not in written
    assert text.count("fold_bn") == 1, "in the caption, and in no row or sentence"
    assert {*re.findall(r'data-series="(W[^"]*)"', page)} == {"W8 int", "W4 int", "W2 int"}
    for file in ("table.csv", "epochs.csv", "pairs.csv"):
        with open(report.folder / file, newline="", encoding="utf-8") as handle:
            names = {row[key] for row in csv.DictReader(handle) for key in ("variant", "a", "b") if key in row}
        assert f"W8 int {' '.join(WORDS)}" in names and "W8 int" not in names, "rows of files stand beside those of others"


def test_a_word_that_some_copy_lacks_stays(predicted, write, tmp_path):
    report = report_of(
        predicted, write, tmp_path, {"fp32": IMAGES < 1800, "W4 int": IMAGES < 1700, "W2 int": IMAGES < 300}, folded=False
    )
    assert "W4 int fold_bn" in report.table and "all copies" not in report.table and "W2 int  " in report.table


def test_copies_in_fp16_that_a_word_tells_apart_keep_it():
    """Their words count where some have any: `input_x` of all in integers, and of one of two in fp16."""
    table = pd.DataFrame(
        {"named": [Label("fp32"), Label("half"), Label("half", words=("input_x",)), Label("int", (8,), words=("input_x",)),
                   Label("int", (4,), words=("input_x",))], "mode": ["fp32", "half", "half", "int", "int"]}
    )  # fmt: skip
    table["variant"] = [label.text for label in table["named"]]
    assert shared_words(table) == () and short_names(table) == {}
    assert shared_words(table.drop(index=1)) == ("input_x",), "all have it"
    assert shared_words(table.drop(index=2)) == ("input_x",), "of fp16 there is nothing to tell apart"


def test_a_single_copy_has_its_whole_name(predicted, write, tmp_path):
    report = report_of(predicted, write, tmp_path, {"fp32": IMAGES < 1800, "W4 int": IMAGES < 1700})
    assert f"W4 int {' '.join(WORDS)}" in report.table and "all copies" not in report.table
