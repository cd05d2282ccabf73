"""What must hold in `seed_puzzle`: identities, which follow from batch norm's invariance to scale, and expected numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qexp.engine.evaluate import Evaluation
from qexp.studies import seed_maps as maps
from qexp.studies.outcome import Check

SAME_PERCENT = 99.0  # of predictions; float32 and batch norm's eps leave a few images on the fence
SAME_POINTS = 0.5


@dataclass(frozen=True)
class Scores:
    """Evaluations of the variants.

    Args:
        by_name: variant's name -> its evaluation.
        num_classes: width of the logits.
    """

    by_name: Mapping[str, Evaluation]
    num_classes: int

    @property
    def num_images(self) -> int:
        """That every variant was scored on."""
        return next(iter(self.by_name.values())).metrics.n

    def of(self, name: str) -> Evaluation:
        """The evaluation of a variant."""
        return self.by_name[name]

    def prec1(self, name: str) -> float:
        """Prec@1 of a variant, percent."""
        return self.by_name[name].metrics.prec1

    def agreement(self, name: str, other: str) -> float:
        """Share of images that two variants predict alike, percent."""
        first, second = (self.by_name[key].predictions.top5[:, 0] for key in (name, other))
        return 100 * float((first == second).float().mean())


def all_checks(
    scores: Scores,
    widths: Sequence[int],
    *,
    unused: Mapping[int, float],
    refused: bool,
    zero_share: float,
    bundled: bool,
) -> tuple[Check, ...]:
    """Identities, then numbers; the latter only of a network of the user's.

    Args:
        scores: of every variant.
        widths: bits.
        unused: share of the never executed weights that the probe flags.
        refused: a shadow refuses such a network.
        zero_share: of pixels after `int()`.
        bundled: the small network.
    """
    checks = [check for bits in widths for check in _same(scores, bits)]
    checks += _never_executed(scores, widths, unused, refused)
    passed = all(maps.refuses_constant(bits) for bits in widths)
    checks.append(Check(name="a constant tensor", expected="an error, not NaN", measured=_yes(passed), passed=passed))
    return tuple(checks if bundled else checks + _numbers(scores, widths, zero_share))


def _same(scores: Scores, bits: int) -> list[Check]:
    """Pairs that predict alike at one width."""
    again = ", BN re-estimated"
    pairs = [
        (f"raw codes, W{bits}{again}", f"offset only, W{bits}{again}"),
        (f"scale only, W{bits}{again}", f"float{again}"),
        (f"symmetric codes, W{bits}{again}", f"symmetric dequantized, W{bits}{again}"),
        (f"symmetric_restricted, scale in BN, W{bits}", f"symmetric_restricted, dequantized, W{bits}"),
    ]
    checks = []
    for first, second in pairs:
        share, points = scores.agreement(first, second), abs(scores.prec1(first) - scores.prec1(second))
        checks.append(
            Check(
                name=f"[{first}] = [{second}]",
                expected=f"at least {SAME_PERCENT:g} percent of predictions alike, Prec@1 within {SAME_POINTS:g}",
                measured=f"{share:.2f} percent alike, {points:.2f} points apart",
                passed=share >= SAME_PERCENT and points <= SAME_POINTS,
                n=scores.num_images,
            )
        )
    first, second = f"pow2_scale, scale in BN, W{bits}", f"pow2_scale, dequantized, W{bits}"
    equal = scores.of(first).digest == scores.of(second).digest
    name, expected = f"[{first}] = [{second}]", "logits equal bit for bit"
    checks.append(Check(name=name, expected=expected, measured=_yes(equal), passed=equal, n=scores.num_images))
    return checks


def _never_executed(scores: Scores, widths: Sequence[int], unused: Mapping[int, float], refused: bool) -> list[Check]:
    """The copy that runs another network: the same at all widths, and found out."""
    checks = []
    for tail in ("", ", input.int()"):
        keys = [f"never executed, W{bits}{tail}" for bits in widths]
        batch = f"float{tail}, BN of the batch"
        equal = len({scores.of(key).digest for key in keys}) == 1
        measured = ", ".join(f"{scores.prec1(key):.2f}" for key in keys)
        checks.append(
            Check(
                name=f"never executed{tail}: the same at every width",
                expected="equal logits, bit for bit",
                measured=f"{_yes(equal)} ({measured})",
                passed=equal,
                n=scores.num_images,
            )
        )
        share = min(scores.agreement(key, batch) for key in keys)
        checks.append(
            Check(
                name=f"never executed{tail} = [{batch}]",
                expected=f"at least {SAME_PERCENT:g} percent of predictions alike",
                measured=f"{share:.2f} percent",
                passed=share >= SAME_PERCENT,
                n=scores.num_images,
            )
        )
    low = min(unused.values())
    checks.append(
        Check(
            name="the probe flags the never executed copy",
            expected="all quantized weights, at every width",
            measured=f"{100 * low:.0f} percent of them",
            passed=low == 1,
        )
    )
    checks.append(Check(name="a shadow of such a network", expected="refused", measured=_yes(refused), passed=refused))
    return checks


def _numbers(scores: Scores, widths: Sequence[int], zero_share: float) -> list[Check]:
    """What a network of the user's is expected to show."""
    checks, number = [], partial(Check, identity=False, n=scores.num_images)
    raw = [key for key in scores.by_name if "raw codes" in key]
    worst = max(raw, key=scores.prec1)
    checks.append(
        number(
            name=f"raw codes really run ({len(raw)} variants): chance",
            expected="at most 15 percent",
            measured=f"at most {scores.prec1(worst):.2f} ({worst})",
            passed=scores.prec1(worst) <= 15,
        )
    )
    for bits in widths:
        drop = scores.prec1("float") - scores.prec1(f"zero point subtracted, W{bits}, BN re-estimated")
        name, measured = f"zero point subtracted, W{bits}", f"{drop:.2f} points below float"
        checks.append(number(name=name, expected="at most 4 points below float", measured=measured, passed=drop <= 4))
    checks.append(number(**_zero_point_rounded(scores, min(widths))))
    drop = scores.prec1("float, BN of the batch") - scores.prec1("float, input.int(), BN of the batch")
    name, expected = "input.int() alone, BN of the batch", "costs about 30 points (20 to 40)"
    checks.append(number(name=name, expected=expected, measured=f"{drop:.2f}", passed=20 <= drop <= 40))
    name, share = "pixels that input.int() turns into 0", 100 * zero_share
    checks.append(number(name=name, expected="about 60 percent", measured=f"{share:.1f}", passed=abs(share - 60) <= 3))
    return checks


def _zero_point_rounded(scores: Scores, bits: int) -> dict[str, Any]:
    """What rounding the zero point costs, with rounded codes and without."""
    again = f"W{bits}, BN re-estimated"
    rounded, unrounded = (
        scores.prec1(before) - scores.prec1(f"{after}, {again}")
        for before, after in (
            (f"zero point subtracted, {again}", "rounded zero point subtracted"),
            ("float, BN re-estimated", "rounded zero point, unrounded codes"),
        )
    )
    return {
        "name": f"rounding the zero point, W{bits}",
        "expected": "costs over 10 points, with codes rounded or not",
        "measured": f"{rounded:.2f} with, {unrounded:.2f} without",
        "passed": min(rounded, unrounded) > 10,
    }


def _yes(value: bool) -> str:
    return "yes" if value else "no"
