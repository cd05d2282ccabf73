"""What another processor may round otherwise of the numbers of an analysis."""

import pytest

from qexp.tracking.rounding import values_within_rounding


@pytest.mark.parametrize(
    ("stored", "other", "expected"),
    [
        (0.0123456, 0.0123455, True),
        (0.02, 7.5, False),
        (float("nan"), float("nan"), True),
        ({"prec1": 50.0, "digest": "a"}, {"prec1": 50.5, "digest": "b"}, True),
        ({"prec1": 50.0}, {"prec1": 50.6}, False),
        ({"n": 100, "prec1": 50.0}, {"n": 100, "prec1": 52.0}, True),  # two images
        ({"n": 100, "n10": 3}, {"n": 100, "n10": 6}, False),
        ({"n": 16, "right": "ff00"}, {"n": 16, "right": "fc00"}, True),
        ({"n": 16, "right": "ff00"}, {"n": 16, "right": "f800"}, False),
        ({"start": 0}, {"start": 1}, False),
        ({"kl": None}, {"kl": 0.0}, False),
        ({"kl": 0.1}, {"kl": 0.1, "n": 5}, False),
    ],
)
def test_values_of_an_analysis(stored, other, expected):
    assert values_within_rounding(stored, other) is expected is values_within_rounding(other, stored)
