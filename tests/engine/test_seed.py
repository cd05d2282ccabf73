import io
import random

import numpy as np
import pytest
import torch

from qexp.engine.seed import capture_rng, restore_rank_rng, restore_rng, seed_everything


@pytest.fixture(autouse=True)
def _as_before():
    state = capture_rng()
    yield
    seed_everything(0)
    restore_rng(state)


def draw():
    return (
        torch.rand(2).tolist(),
        torch.randn(1).item(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
    )


def test_a_seed_decides_what_is_drawn():
    seed_everything(2**63 - 1)
    first = draw()
    seed_everything(2**63 - 1)
    assert draw() == first
    seed_everything(1)
    assert draw() != first


def test_states_survive_a_file():
    draw()
    buffer = io.BytesIO()
    torch.save(capture_rng(), buffer)
    first = draw()
    buffer.seek(0)
    restore_rng(torch.load(buffer, weights_only=True))
    assert draw() == first


def test_another_number_of_ranks_goes_on_from_rank_0():
    states = [capture_rng()]
    first = draw()
    restore_rank_rng([states[0], states[0]])
    assert draw() == first


def test_deterministic_is_switched_on_and_off():
    seed_everything(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    seed_everything(0)
    assert not torch.are_deterministic_algorithms_enabled()
