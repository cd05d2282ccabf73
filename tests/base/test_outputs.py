"""The logits among what a network returns."""

from collections import namedtuple

import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.outputs import main_output

LOGITS = torch.arange(6.0).reshape(2, 3)
Outputs = namedtuple("Outputs", ["logits", "aux"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, None),
        [LOGITS],
        Outputs(LOGITS, torch.zeros(1)),
    ],
)
def test_main_output(output):
    assert main_output(output) is LOGITS


@pytest.mark.parametrize("output", [None, (), {"logits": LOGITS}, "logits", [[LOGITS]]])
def test_no_logits(output):
    with pytest.raises(UserError, match=f"returned {type(output).__name__}"):
        main_output(output)
