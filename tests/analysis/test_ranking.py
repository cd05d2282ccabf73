"""Trust in a measure: correlations against scipy's definition, and regret against choices written out."""

from dataclasses import replace

import numpy as np
import pytest

from qexp.analysis.ranking import correlations, regret, trust
from qexp.analysis.results import LayerLoss
from qexp.config.analyze import MEASURED, PROXIES

LAYER = LayerLoss(
    layer="a", bits=4, num_elements=10, size_bytes=5, prec1=80.0, delta_prec1=-1.0, delta_loss=0.1, kl=0.1, n=100, n10=2, n01=1,
    disagreement=3.0, sqnr_db=20.0, noise_to_signal=0.01, mse=0.1, weighted_mse=0.1, fisher=0.1, hessian=0.1,
)  # fmt: skip


def test_ranks_by_hand():
    ours, theirs = np.array([1.0, 2, 3, 4, 5]), np.array([10.0, 30, 20, 50, 40])
    rho = 1 - 6 * (0 + 1 + 1 + 1 + 1) / (5 * 24)
    assert correlations(ours, theirs) == (pytest.approx(rho), pytest.approx((8 - 2) / 10))


@pytest.mark.parametrize("theirs", [[1.0, 1.0, 1.0], [1.0, 2.0], [1.0, np.nan, np.inf]])
def test_no_correlation_where_none_is_defined(theirs):
    assert correlations(np.arange(len(theirs), dtype=float), np.array(theirs)) == (None, None)


def test_regret_counts_what_is_left_to_quantize():
    theirs = np.array([8.0, 4.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0])  # of eight layers two are protected
    assert regret(theirs, theirs) == 0.0
    assert regret(-theirs, theirs) == pytest.approx(100 * (16 - 4) / 16)
    assert regret(np.array([8.0, 0, 4, 1, 1, 0, 0, 0]), theirs) == pytest.approx(100 * (6 - 4) / 16)
    assert regret(theirs, -theirs) is None and regret(theirs * np.nan, theirs) is None


def test_every_measure_is_held_against_every_truth_and_a_layer_without_it_is_left_out():
    kls = (0.4, 0.3, 0.2, 0.1)
    layers = [
        replace(LAYER, layer=str(k), bits=bits, kl=kl, delta_loss=kl, fisher=None if k == 0 else kl, hessian=-kl)
        for bits in (2, 4)
        for k, kl in enumerate(kls)
    ]
    trusts = {(entry.bits, entry.measure, entry.truth): entry for entry in trust(layers)}
    assert len(trusts) == 2 * ((2 + len(PROXIES)) * len(MEASURED) - 2)
    assert trusts[2, "loss", "kl"].spearman == 1.0 and trusts[4, "hessian", "kl"].kendall == -1.0
    assert trusts[4, "fisher", "kl"].num_layers == 3 and trusts[4, "sqnr", "kl"].spearman is None
