import pytest
import torch

from qexp.engine.loss import AUX_WEIGHT, total_loss


def test_auxiliary_outputs_are_discounted():
    logits, aux = torch.tensor([1.0]), torch.tensor([10.0])
    assert total_loss((logits, aux, None, aux), torch.sum).item() == pytest.approx(1 + 2 * AUX_WEIGHT * 10)
    assert total_loss(logits, torch.sum).item() == 1
