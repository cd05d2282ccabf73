"""The networks that `task=shrink` chooses among, as jobs: each way to quantize that its lists make together; torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from qexp.base.catalog import CUSTOM, is_own
from qexp.base.errors import UserError
from qexp.config.analyze import NO_CORRECTION
from qexp.config.correct import CORRECTIONS, CorrectSettings
from qexp.config.policy import PolicySettings
from qexp.config.quant import QuantSettings
from qexp.config.root import Config
from qexp.quant.scheme_table import SCHEMES

MIXED = "mixed"  # the policy whose candidates are made while the search runs


@dataclass(frozen=True)
class Candidate:
    """One way to quantize.

    Args:
        config: its job.
        corrections: as they were listed.
    """

    config: Config
    corrections: str


def candidates(config: Config) -> tuple[Candidate, ...]:
    """What the lists make together, `mixed` left out: policy by scheme by granularity by correction by width.

    Schemes with blocks of their own have no granularity, those of one width take that one, and widths that a scheme does not have
    are left out.

    Args:
        config: of the job.

    Raises:
        UserError: a scheme that has none of the widths, or corrections that do not go together.
    """
    settings = config.analyze
    policies = [PolicySettings(name=name, edge_bits=config.policy.edge_bits) for name in settings.policies if name != MIXED]
    quants = list(_quants(config))
    corrections = {name: _corrected(config.correct, name) for name in settings.corrections}
    return tuple(
        Candidate(replace(config, bits=bits, policy=policy, quant=quant, correct=correct), name)
        for policy in policies
        for quant, widths in quants
        for name, correct in corrections.items()
        for bits in widths
    )


def widths_of(config: Config, scheme: str) -> tuple[int, ...]:
    """The widths that a scheme is tried at, ascending; of a scheme with one width that one.

    Args:
        config: of the job.
        scheme: a name of `SCHEMES`, or the text of a user's function.

    Raises:
        UserError: none of `analyze.widths` is one of the scheme's.
    """
    row = SCHEMES[scheme]
    if row.min_bits == row.max_bits:
        return (row.min_bits,)
    asked = config.analyze.tried(config.bits, "shrink")
    widths = tuple(bits for bits in asked if row.min_bits <= bits <= row.max_bits)
    if not widths:
        allowed = f"some width from {row.min_bits} to {row.max_bits} with analyze.schemes={scheme}"
        raise UserError("analyze.widths", list(asked), allowed=allowed)
    return widths


def _quants(config: Config) -> Iterator[tuple[QuantSettings, tuple[int, ...]]]:
    """Every scheme with every granularity that it reads, and its widths."""
    for scheme in config.analyze.schemes:
        widths = widths_of(config, scheme)
        name, factory = (CUSTOM, scheme) if is_own(scheme) else (scheme, None)
        for granularity in config.analyze.granularities[: None if SCHEMES[scheme].block is None else 1]:
            weight = replace(config.quant.weight, granularity=granularity)
            yield replace(config.quant, name=name, factory=factory, weight=weight), widths


def _corrected(settings: CorrectSettings, listed: str) -> CorrectSettings:
    """The settings with the listed corrections on, and no other."""
    off = CorrectSettings()
    switches: dict[str, Any] = {row.switch: getattr(off, row.switch) for row in CORRECTIONS.values()}
    for name in listed.split("+") if listed != NO_CORRECTION else []:
        row = CORRECTIONS[name]
        if switches[row.switch] != getattr(off, row.switch):
            raise UserError("analyze.corrections", listed, allowed="each correction once, and one of the biases")
        switches[row.switch] = True if row.choice is None else row.choice
    try:
        return replace(settings, **switches)
    except UserError as error:
        raise UserError("analyze.corrections", listed, allowed="corrections that go together", remedy=str(error)) from None
