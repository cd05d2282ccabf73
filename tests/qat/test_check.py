"""Every row of a training method holds, ours and a user's; what a user's may get wrong."""

from dataclasses import replace

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.qat_methods import QAT_METHODS
from qexp.qat.check import check_qat_method
from qexp.qat.methods import QatMethod
from qexp.qat.quantizers import ObservedRange, WeightRange


@pytest.mark.parametrize("name", QAT_METHODS)
def test_our_rows_hold(name):
    check_qat_method(QAT_METHODS[name], QAT_METHODS.load(name))


class Half(QatMethod):
    """Values that are on no grid: half of what a step gives."""

    def weight_quantizer(self, weight, spec, settings):
        return WeightRange(spec, settings.gradient_mask)

    def activation_quantizer(self, info, spec, settings):
        return HalfRange(spec, settings.gradient_mask, settings.momentum)


class HalfRange(ObservedRange):
    def forward(self, x):
        return super().forward(x) / 2


class Forgetful(Half):
    """A quantizer with a state that no state dict holds."""

    def activation_quantizer(self, info, spec, settings):
        return ForgetfulRange(spec, settings.gradient_mask, settings.momentum)


class ForgetfulRange(ObservedRange):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        del self.minimum
        self.minimum = torch.full((), torch.nan)


class Raising(Half):
    def weight_quantizer(self, weight, spec, settings):
        raise ZeroDivisionError("one by zero")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pact", {"decay": None}, "decay=None: allowed is scale_decay or alpha_decay, as it learns. .*It learns alpha"),
        ("ste", {"decay": "scale_decay"}, "decay=scale_decay: allowed is None. Its quantizers learn nothing"),
        ("pact", {"why_unfolded": ""}, "why_unfolded='': allowed is a reason"),
        ("lsq", {"mask": "all"}, "mask=all: allowed is one of paper, rounded"),
        ("lsq", {"granularities": ["per_tensor"]}, r"granularities=\['per_tensor'\]: allowed is a valid tuple"),
        ("lsq", {"first_steps": ()}, "first_steps=.*: allowed is at least one"),
        (
            "every_step",
            {"overwrites_weights": False},
            "overwrites_weights=false: allowed is true where weight_quantizer gives None",
        ),
        ("ste", {"code": object}, "code=.*object.*: allowed is a class derived from qexp.qat.methods.QatMethod"),
        (
            "ste",
            {"code": Half},
            "code=its quantizer: .*qparams stand for what forward gives .*Seen at: activation, affine, image",
        ),
        ("ste", {"code": Forgetful}, "code=its quantizer: .*a state dict holds the whole state"),
        ("ste", {"code": Raising}, "code=Raising. At weight, symmetric_restricted, .* it raised ZeroDivisionError: one by zero"),
    ],
)
def test_a_row_that_contradicts_itself_or_its_code_is_refused(name, changes, message):
    row = replace(QAT_METHODS[name], **{"code": QAT_METHODS.load(name), **changes})
    with pytest.raises(UserError, match=message):
        check_qat_method(row, row.code)
