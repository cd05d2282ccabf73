"""Which corrections go together."""

import pytest

from qexp.base.errors import UserError
from qexp.config.correct import CorrectSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"equalize": True}, "correct.fold_bn=true"),
        ({"absorb_bias": True}, "correct.fold_bn=true"),
        ({"rescale_log10": 1.0}, "0 without correct.fold_bn=true"),
        ({"fold_bn": True, "rescale_log10": -1.0}, "correct.rescale_log10"),
        ({"adaround_lr": 0.0}, "correct.adaround_lr"),
        ({"adaround_iterations": -1}, "correct.adaround_iterations"),
        ({"adaround_warmup": 1.5}, "correct.adaround_warmup"),
        ({"adaround_beta_start": 1.5}, "correct.adaround_beta_end=2"),
    ],
)
def test_refused(values, message):
    with pytest.raises(UserError, match=message):
        CorrectSettings(**values)


def test_accepted_and_what_needs_images():
    assert not CorrectSettings(fold_bn=True, equalize=True, absorb_bias=True, bias="analytic").needs_images
    assert all(
        CorrectSettings(**values).needs_images for values in ({"bias": "empirical"}, {"reestimate_bn": True}, {"adaround": True})
    )
