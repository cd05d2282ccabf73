"""What is claimed of a table's rows together: draws from a known truth, in which false claims are counted."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from qexp.reporting.frames.predictions import Predictions, StoredPredictions, float_keys
from qexp.reporting.frames.summary import CLAIMS
from qexp.reporting.statistics.paired import ALPHA, with_statistics
from qexp.reporting.statistics.pairs import compare_rows, weights
from qexp.reporting.statistics.power import at_chance, power_sentences
from qexp.reporting.statistics.verdict import EXPLAINED, _against_best, _no_loss, with_claims
from qexp.stats.family import holm_adjusted
from qexp.stats.noninferiority import MARGIN
from qexp.stats.paired import mcnemar
from qexp.stats.score import score

DRAWS = 2000
MOST = binom.isf(0.01, DRAWS, ALPHA)  # false claims that a rate of 5 % exceeds in one of a hundred such simulations


def judged(right, *, training="t", **columns):
    """The table of networks that are right where told, the first the float one, and its comparisons."""
    n = len(next(iter(right.values())))
    index, label = np.arange(n), np.zeros(n, dtype=np.int64)
    stored, rows = StoredPredictions(), []
    for variant, values in right.items():
        key = {"training": training, "variant_key": variant, "epoch": 1, "split": "test", "n": n}
        mode = "fp32" if variant == "fp32" else "int"
        rows.append(key | {"label": "", "variant": variant, "mode": mode, "data_hash": "d", "prec1": 100 * values.mean()})
        stored.by_key[tuple(key.values())] = Predictions(index, label, np.where(values, 0, 1), values)
    frame = pd.DataFrame(rows).assign(**columns)
    stored.floats.update(float_keys(frame))
    frame = with_statistics(frame, stored)
    compared = compare_rows(frame, stored)
    return with_claims(frame, compared), compared


@pytest.mark.parametrize("flips", [0.02, 0.2])
def test_equal_rows_are_seldom_called_different(flips):
    """Ten copies as accurate as their float network; every difference that is claimed of any pair is false."""
    generator, n = np.random.default_rng(15), 400
    base = generator.random((DRAWS, 1, n), dtype=np.float32) < 0.5
    right = base ^ (generator.random((DRAWS, 11, n), dtype=np.float32) < flips)
    values = right.astype(np.float32)
    only = values @ (1 - values).transpose(0, 2, 1)
    first, second = np.triu_indices(11, 1)
    p_holm = holm_adjusted(mcnemar(only[:, first, second], only[:, second, first]), weights(first == 0))
    assert (p_holm <= ALPHA).any(1).sum() <= MOST
    table, compared = judged({f"W{number} int" if number else "fp32": row for number, row in enumerate(right[0])})
    assert compared.pairs["p_holm"].tolist() == pytest.approx(p_holm[0].tolist())
    assert table["p_holm"].tolist()[1:] == pytest.approx(p_holm[0][:10].tolist()) and compared.num_planned == 10


@pytest.mark.parametrize(("n", "right_a", "right_b"), [(2000, 0.02, 0.015), (10_000, 0.055, 0.05)])
def test_losses_of_the_margin_are_seldom_called_none(n, right_a, right_b):
    """Forty copies that lose exactly the margin: without a correction 86 % of such tables made a false claim."""
    shares = [right_a, right_b, 1 - right_a - right_b]
    counts = np.random.default_rng(15).multinomial(n, shares, size=(DRAWS, 40))[..., :2]
    unique, place = np.unique(counts.reshape(-1, 2), axis=0, return_inverse=True)
    p_loss = norm.sf([score(*pair, n, -MARGIN) for pair in unique.tolist()])[place].reshape(DRAWS, 40)
    claims = holm_adjusted(p_loss, np.ones(40)) <= ALPHA
    assert claims.any(1).sum() <= MOST and (p_loss <= ALPHA).any(1).mean() > 0.8


def test_a_claim_of_no_loss_counts_all_that_were_tested():
    """Ten copies of which two pass by themselves: one of them after Holm; `equivalent` asks for both sides."""
    images = np.arange(10_000)
    lost = {"W16 int": 0, "W8 int": 37, **{f"W{width} int": 60 for width in range(7, -1, -1)}}
    table, _ = judged({"fp32": images < 9000, **{name: (images >= count) & (images < 9000) for name, count in lost.items()}})
    rows = table.set_index("variant")
    assert (rows["loss_bound"] < MARGIN).sum() == 2
    assert rows["non_inferior"].eq(True).sum() == rows["equivalent"].eq(True).sum() == 1 and rows.loc["W16 int", "equivalent"]
    assert rows.loc["W8 int", "p_loss_holm"] == pytest.approx(9 * rows.loc["W8 int", "p_loss"])
    text = " ".join(_no_loss(table))
    assert "1 of 9 is shown to lose less than 0.5 points: W16 int (one-sided score test, Holm over 9 tests" in text.replace(
        "10", "9"
    )
    assert "equivalent within 0.5 points: W16 int (two one-sided score tests" in text
    gain, _ = judged({"fp32": images < 9000, "W8 int": images < 9100})
    assert gain["non_inferior"].tolist()[1] is True and gain["equivalent"].tolist()[1] is False


def test_a_row_that_is_worse_than_another_is_not_called_as_good_as_the_best():
    """The copy differs from fp32 in few images; from the best row, which disagrees more, it is not separated by itself."""
    images = np.arange(10_000)
    best = (images >= 300) & (images < 9310)
    table, compared = judged({"fp32": images < 9000, "W8 int": best, "W4 int": (images >= 40) & (images < 9000)})
    rows, pairs = table.set_index("variant"), compared.pairs.set_index(["a", "b"])
    assert rows["vs_best"].to_dict() == {"fp32": "not separated", "W8 int": "best", "W4 int": "worse"}
    assert pairs.loc[("W8 int", "W4 int"), "p_holm"] > ALPHA and rows.loc["W4 int", "p_holm"] < ALPHA
    (sentence,) = _against_best(table, [table.index])  # none are counted as alike to the best: W4 int is, too
    told = "The best is W8 int (90.10 %); 1 of 2 others is shown to be worse than some row: W4 int (-0.50)"
    assert sentence == f"{told}; not shown to be worse than any: fp32 (-0.10) (the same family)."
    # One verdict and one interval for a pair, wherever it stands.
    for name in ("W8 int", "W4 int"):
        for column in ("p_holm", "p_value", "ci_low", "ci_high"):
            assert rows.loc[name, column] == pairs.loc[("fp32", name), column]


@pytest.mark.parametrize(("n", "flips", "copies"), [(10_000, 28, 1), (10_000, 700, 3), (2000, 100, 12)])
def test_the_sentence_about_power_is_true(n, flips, copies):
    images = np.arange(n)
    copy = (images >= flips // 2) & (images < n // 2 + flips - flips // 2)
    table, compared = judged({"fp32": images < n // 2} | {f"W{width} int": copy for width in range(2, 2 + copies)})
    (sentence,) = power_sentences(table, [table.index], compared)
    power, points, share = map(float, re.match(r"With (\d+) % power .* of ([\d.]+) points.* where ([\d.]+) %", sentence).groups())
    assert points <= share
    shares = np.array([share - points, share + points, 2 * (100 - share)]) / 200
    n10, n01, _ = np.random.default_rng(15).multinomial(n, shares, size=20_000).T
    assert abs(100 * np.mean(mcnemar(n10, n01) <= compared.level) - power) < 2


def test_too_few_flips_show_nothing_and_more_images_would():
    images = np.arange(1800)
    table, compared = judged({"fp32": images < 900, "W8 int": (images >= 3) & (images < 902)})
    (told,) = power_sentences(table, [table.index], compared)
    assert told == (
        "Where 0.28 % of 1800 images flip (the median of those that flip), not even flips of one kind alone would show a "
        "difference with 80 % power; some 3600 images would show one."
    )


def test_a_network_that_guesses_is_found_out():
    images = np.arange(2000)
    table, _ = judged({"fp32": images < 208, "W4 int": images < 200})
    (told,) = at_chance(table, 10)
    assert told.startswith("fp32 is no better than guessing among 10 classes (10.40 %)") and "trained on these data?" in told
    assert not [*at_chance(table, 100)] and not [*at_chance(table, 0)]


def test_a_trained_copy_is_tested_against_its_control():
    """It gained on its start and lost against the float network that was trained on as long."""
    images, index, label = np.arange(10_000), np.arange(10_000), np.zeros(10_000, dtype=np.int64)
    stored, rows = StoredPredictions(), []
    for training, variant, control, right in (
        ("start", "fp32", None, 9000), ("q", "fp32", "c", 9000), ("q", "W4 int", "c", 9100), ("c", "fp32", "c", 9200),
    ):  # fmt: skip
        key = (training, variant, 1, "test", 10_000)
        rows.append(
            dict(zip(("training", "variant_key", "epoch", "split", "n"), (training, variant, 1, "test", 10_000), strict=True))
        )
        rows[-1] |= {"variant": variant, "control": control, "prec1": right / 100}
        stored.by_key[key] = Predictions(index, label, np.where(images < right, 0, 1), images < right)
    frame = pd.DataFrame(rows)
    row = with_statistics(frame, replace(stored, floats=float_keys(frame))).iloc[2]
    assert (row["lost"], row["gained"]) == (100, 0) and row["ci_high"] < 0 and row["p_loss"] > 0.5
    without = with_statistics(frame.drop(3), replace(stored, floats=float_keys(frame.drop(3))))
    assert without["p_value"].isna().all()  # the control has not got as far: nothing else stands for it


def test_what_is_claimed_is_explained():
    assert set(CLAIMS) == {"p_holm", "p_loss_holm", "non_inferior", "equivalent", "vs_best"}
    for word in ("not adjusted", "one family", "not significant", "Holm-adjusted p", "equivalent", "worse"):
        assert word in EXPLAINED
