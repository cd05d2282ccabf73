"""Bits per layer around a network of one width, for `task=shrink`: the best within so many bytes, by the noise of the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qexp.analysis.budgets import bytes_budget
from qexp.analysis.layer_policy import rules
from qexp.analysis.layers import layers_of
from qexp.analysis.proxies import weight_errors
from qexp.analysis.race import Race
from qexp.analysis.solvers import exact
from qexp.config.correct import CORRECTIONS, CorrectSettings
from qexp.config.policy import PolicySettings
from qexp.config.root import Config
from qexp.config.search_space import Candidate, widths_of


class Mixed:
    """The layers of a candidate's network, and what each width does to each: sum (w - w^)^2 / sum w^2, which needs no image.

    Args:
        race: of the networks.
        one: the candidate whose scheme, granularity and corrections are kept.
    """

    def __init__(self, race: Race, one: Candidate) -> None:
        self._race, self._one = race, one
        self._uniform = replace(one.config, policy=PolicySettings())
        self._base = race.variant(self._uniform)
        self.rows = layers_of(self._base)
        self.widths = widths_of(race.config, one.config.quant.scheme)
        budget = bytes_budget(0, self.rows, self._base.plan)
        self._fixed = budget.fixed
        self._costs = np.array([[budget.cost(row, bits) for bits in self.widths] for row in self.rows], dtype=np.int64)
        self._losses = np.array([self._ratios(bits) for bits in self.widths]).T

    @property
    def least(self) -> int:
        """Bytes of the state dict with every layer at its narrowest."""
        return int(self._costs.min(1).sum()) + self._fixed

    def within(self, size_bytes: int) -> Candidate:
        """The widths whose noise-to-signal ratios add up to least.

        Args:
            size_bytes: of the state dict, at least `least`.
        """
        choice = exact(self._losses, self._costs, size_bytes - self._fixed)
        bits = {row.info.name: self.widths[place] for row, place in zip(self.rows, choice.widths, strict=True)}
        return Candidate(replace(self._one.config, policy=rules(self.rows, bits)), self._one.corrections)

    def _ratios(self, bits: int) -> list[float]:
        """Of each layer at one width, on the network as it is when weights are rounded."""
        job: Config = replace(self._uniform, bits=bits, correct=_before_rounding(self._uniform.correct))
        built = self._race.built(self._race.variant(job, activations=False))
        source, copied = built.reference.state_dict(), built.module.state_dict()
        errors = [weight_errors(source[row.info.name].detach(), copied[row.info.name].detach()) for row in self.rows]
        ratios = [float(one["noise_to_signal"] or 0.0) for one in errors]
        return [ratio if np.isfinite(ratio) else 1e6 for ratio in ratios]


def _before_rounding(settings: CorrectSettings) -> CorrectSettings:
    """Without the corrections that come after rounding: they change no weight's distance, or take long."""
    off = {row.switch: getattr(CorrectSettings(), row.switch) for row in CORRECTIONS.values() if row.step == "after"}
    return replace(settings, **off)
