"""How often is what task=shrink shows wrong, and what does it cost? Its race and its test, on images drawn again and again.

    python scripts/resample_shrink.py FOLDER --max-loss POINTS --select N --confirm N [--draws 100] [--seed 0]

FOLDER: `results/<name>` of an evaluation that holds the predictions of all candidates, the whole grid on the same images once.
These images are the population: the loss of a candidate on all of them is the truth. For each draw N images are drawn from them
with replacement to choose on, and others to confirm on. Nothing is evaluated. Candidates of one width alone: bits per layer,
which follow from the choice, are not among the stored predictions.

Printed: of how many draws a network was shown, and how many of those lose the margin or more in truth, beside the most that an
error rate of 5 % explains at 1 %; the same of the choice before it was confirmed; the share of the grid's image evaluations; and
which networks were chosen. Exit code 1 where violations are more than that.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binom

from qexp.reporting.frames.predictions import FILE, measurement_of, read_compact
from qexp.stats.noninferiority import non_inferiority
from qexp.stats.paired import compare_counts
from qexp.stats.sequential import non_inferior

BLOCK = 100
ALPHA, SIGNIFICANT = 0.05, 0.01


@dataclass(frozen=True)
class Candidate:
    """A network of the grid: its bytes, and for each image 1 where it alone is right, -1 where float alone is."""

    label: str
    size_bytes: int
    differences: np.ndarray

    @property
    def loss(self) -> float:
        """The truth, points."""
        return float(-100 * self.differences.mean())


def read(folder: Path) -> list[Candidate]:
    """The candidates of a folder by size; of equal ones in the order of its table."""
    stored, rows = read_compact(folder / FILE), []
    with open(folder / "table.csv", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            key = (row["training"], row["variant_key"], int(row["epoch"]), row["split"], int(row["n"]))
            reference = stored.by_key[stored.floats[measurement_of(key)]]
            if row["variant"] != "fp32":
                differences = stored.by_key[key].right.astype(np.int8) - reference.right.astype(np.int8)
                rows.append(Candidate(row["variant"], int(row["size_bytes"]), differences))
    return sorted(rows, key=lambda one: one.size_bytes)


def blocks(differences: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(n10, n01, n) of each block."""
    for start in range(0, len(differences), BLOCK):
        block = differences[start : start + BLOCK]
        yield int((block < 0).sum()), int((block > 0).sum()), len(block)


def race(candidates: list[Candidate], images: np.ndarray, margin: float) -> tuple[Candidate | None, int]:
    """The smallest that passes on these images, and the image evaluations that it took, float's included."""
    test, used, most = non_inferior(margin, alpha=ALPHA), 0, 0
    for one in candidates:
        seen = test.run(blocks(one.differences[images]), len(images))
        used, most = used + seen.n, max(most, seen.n)
        if seen.verdict == "above":
            return one, used + most
    return None, used + most


def confirmed(one: Candidate, images: np.ndarray, margin: float) -> bool:
    """The test at a fixed n."""
    drawn = one.differences[images]
    paired = compare_counts(int((drawn < 0).sum()), int((drawn > 0).sum()), len(drawn))
    return non_inferiority(paired, margin=margin, alpha=ALPHA).holds


def main() -> int:
    """Resample and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-loss", type=float, required=True)
    parser.add_argument("--select", type=int, required=True)
    parser.add_argument("--confirm", type=int, required=True)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    candidates, generator = read(given.folder), np.random.default_rng(given.seed)
    size, margin = len(candidates[0].differences), given.max_loss
    chosen, shown, wrong_choice, wrong_claim, shares = Counter[str](), 0, 0, 0, []
    for _ in range(given.draws):
        one, used = race(candidates, generator.integers(size, size=given.select), margin)
        shares.append(used / ((len(candidates) + 1) * given.select))
        holds = one is not None and confirmed(one, generator.integers(size, size=given.confirm), margin)
        chosen["nothing" if one is None else f"{one.label} ({one.size_bytes} bytes, loss {one.loss:.2f})"] += 1
        violates = one is not None and one.loss >= margin
        wrong_choice += violates
        shown += holds
        wrong_claim += violates and holds
    most = int(binom.isf(SIGNIFICANT, given.draws, ALPHA))
    below = [one for one in candidates if one.loss < margin]
    print(f"{len(candidates)} candidates, population of {size} images, margin {margin:g} points, {given.draws} draws of "
          f"{given.select} images to choose and {given.confirm} to confirm, seed {given.seed}")  # fmt: skip
    if below:
        print(f"the smallest that loses less on the whole population: {below[0].label}, {below[0].size_bytes} bytes, "
              f"loss {below[0].loss:.2f}")  # fmt: skip
    print(f"shown: {shown} of {given.draws}; of these wrong: {wrong_claim} (a rate of 5 % explains up to {most})")
    print(f"chosen before confirmation: {given.draws - chosen['nothing']}; of these wrong: {wrong_choice}")
    print(f"image evaluations: {100 * np.mean(shares):.1f} % of the grid's, at most {100 * np.max(shares):.1f} %")
    for label, count in chosen.most_common():
        print(f"  {count:4d}  {label}")
    return int(wrong_claim > most)


if __name__ == "__main__":
    sys.exit(main())
