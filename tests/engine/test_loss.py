import math

import pytest
import torch

from qexp.engine.loss import AUX_WEIGHT, distillation_loss, total_loss


def test_auxiliary_outputs_are_discounted():
    logits, aux = torch.tensor([1.0]), torch.tensor([10.0])
    assert total_loss((logits, aux, None, aux), torch.sum).item() == pytest.approx(1 + 2 * AUX_WEIGHT * 10)
    assert total_loss(logits, torch.sum).item() == 1


def test_the_distance_to_a_teacher_is_summed_over_the_images():
    student, teacher = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, math.log(9.0)], [2.0, 0.0]])
    # At T = 2 the teacher's odds of 9 become 3: KL((1/4, 3/4) || (1/2, 1/2)).
    expected = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)
    assert distillation_loss(teacher, teacher, 2.0).item() == 0
