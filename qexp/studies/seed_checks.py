"""What must hold in `seed_puzzle`: identities, which follow from batch norm's invariance to scale, and expected numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from qexp.engine.evaluate import Evaluation
from qexp.studies import seed_maps as maps
from qexp.studies.outcome import Check, expected, yes

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
    checks.append(Check("a constant tensor", "an error, not NaN", yes(passed), passed))
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
        claim = f"at least {SAME_PERCENT:g} percent of predictions alike, Prec@1 within {SAME_POINTS:g}"
        measured, passed = (
            f"{share:.2f} percent alike, {points:.2f} points apart",
            share >= SAME_PERCENT and points <= SAME_POINTS,
        )
        checks.append(Check(f"[{first}] = [{second}]", claim, measured, passed, n=scores.num_images))
    first, second = f"pow2_scale, scale in BN, W{bits}", f"pow2_scale, dequantized, W{bits}"
    equal = scores.of(first).digest == scores.of(second).digest
    name = f"[{first}] = [{second}]"
    return [*checks, Check(name, "logits equal bit for bit", yes(equal), equal, n=scores.num_images)]


def _never_executed(scores: Scores, widths: Sequence[int], unused: Mapping[int, float], refused: bool) -> list[Check]:
    """The copy that runs another network: the same at all widths, and found out."""
    checks = []
    for tail in ("", ", input.int()"):
        keys = [f"never executed, W{bits}{tail}" for bits in widths]
        batch = f"float{tail}, BN of the batch"
        equal = len({scores.of(key).digest for key in keys}) == 1
        measured = f"{yes(equal)} ({', '.join(f'{scores.prec1(key):.2f}' for key in keys)})"
        name, n = f"never executed{tail}: the same at every width", scores.num_images
        checks.append(Check(name, "equal logits, bit for bit", measured, equal, n=n))
        share = min(scores.agreement(key, batch) for key in keys)
        name, claim = f"never executed{tail} = [{batch}]", f"at least {SAME_PERCENT:g} percent of predictions alike"
        checks.append(Check(name, claim, f"{share:.2f} percent", share >= SAME_PERCENT, n=n))
    low, claim = min(unused.values()), "all quantized weights, at every width"
    checks.append(Check("the probe flags the never executed copy", claim, f"{100 * low:.0f} percent of them", low == 1))
    return [*checks, Check("a shadow of such a network", "refused", yes(refused), refused)]


def _numbers(scores: Scores, widths: Sequence[int], zero_share: float) -> list[Check]:
    """What a network of the user's is expected to show."""
    number = partial(expected, n=scores.num_images)
    raw = [key for key in scores.by_name if "raw codes" in key]
    worst = max(raw, key=scores.prec1)
    name, top = f"raw codes really run ({len(raw)} variants): chance", scores.prec1(worst)
    checks = [number(name, "at most 15 percent", f"at most {top:.2f} ({worst})", top <= 15)]
    for bits in widths:
        drop = scores.prec1("float") - scores.prec1(f"zero point subtracted, W{bits}, BN re-estimated")
        name, measured = f"zero point subtracted, W{bits}", f"{drop:.2f} points below float"
        checks.append(number(name, "at most 4 points below float", measured, drop <= 4))
    bits = min(widths)
    rounded, unrounded = _zero_point_rounded(scores, bits)
    name, measured = f"rounding the zero point, W{bits}", f"{rounded:.2f} with, {unrounded:.2f} without"
    checks.append(number(name, "costs over 10 points, with codes rounded or not", measured, min(rounded, unrounded) > 10))
    drop = scores.prec1("float, BN of the batch") - scores.prec1("float, input.int(), BN of the batch")
    name, claim = "input.int() alone, BN of the batch", "costs about 30 points (20 to 40)"
    checks.append(number(name, claim, f"{drop:.2f}", 20 <= drop <= 40))
    name, share = "pixels that input.int() turns into 0", 100 * zero_share
    return [*checks, number(name, "about 60 percent", f"{share:.1f}", abs(share - 60) <= 3)]


def _zero_point_rounded(scores: Scores, bits: int) -> tuple[float, float]:
    """What rounding the zero point costs, points: with rounded codes, and without."""
    again = f"W{bits}, BN re-estimated"
    with_codes = scores.prec1(f"zero point subtracted, {again}") - scores.prec1(f"rounded zero point subtracted, {again}")
    alone = scores.prec1("float, BN re-estimated") - scores.prec1(f"rounded zero point, unrounded codes, {again}")
    return with_codes, alone
