"""Range methods and their rows, ours and such as a user could write."""

from dataclasses import replace

import pytest

from qexp.base.errors import UserError
from qexp.config.calibrate import RANGE_METHODS
from qexp.ptq.check_range_method import check_range_method


@pytest.mark.parametrize("name", RANGE_METHODS)
def test_every_method_does_what_its_row_says(name):
    check_range_method(RANGE_METHODS[name], RANGE_METHODS.load(name))


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("kl", {"reads": "values"}, "reads=values: allowed is one of ends, sample, batch_norm"),
        ("kl", {"for_weights": None}, "for_weights=None: allowed is true or false"),
        ("bn", {"for_weights": True}, "for_weights=true: allowed is false where reads=batch_norm"),
        ("kl", {"settings": ()}, "settings=num_candidates: allowed is the settings that the method reads"),
        ("kl", {"settings": ("candidates",)}, "Did you mean num_candidates?"),
        ("mse", {"depends_on_grid": False}, "depends_on_grid=false: allowed is true"),
        ("minmax", {"code": 3}, "code=int: allowed is a function"),
        ("minmax", {"code": lambda ends, spec: ends}, "takes 2 positional arguments but 3 were given"),
        ("minmax", {"code": lambda ends, spec, settings: ends[0]}, "too many values to unpack"),
        ("minmax", {"code": lambda ends, spec, settings: ends}, r"code=float32 \[4, 3\]: allowed is two float32 tensors \[3\]"),
        ("minmax", {"code": lambda ends, spec, settings: (0.0, 1.0)}, "code=float: allowed is two float32 tensors"),
        ("minmax", {"code": lambda ends, spec, settings: (ends[0][0].log(), ends[1][0])}, "allowed is finite limits"),
        ("minmax", {"code": lambda ends, spec, settings: (ends[1][0], ends[0][0])}, "no lower limit above the upper one"),
        ("minmax", {"code": lambda ends, spec, settings: (ends[0][0] * 9, ends[1][0])}, "limits within the values and zero"),
    ],
)
def test_a_row_that_its_code_contradicts_is_refused(name, changes, message):
    row = replace(RANGE_METHODS[name], **changes)
    with pytest.raises(UserError, match=message):
        check_range_method(row, row.load())
