import copy

import pytest
import torch
from torch import nn

from qexp.engine.probe import check_in_use, probe


@pytest.fixture
def net(problem):
    return problem.network(dropout=0.5).eval()


@pytest.fixture
def images(problem):
    return problem.images[:4]


WEIGHTS = ["0.weight", "6.weight"]


def test_a_true_copy_is_in_use(net, images):
    assert check_in_use(net, copy.deepcopy(net), WEIGHTS, images) == []


@pytest.mark.parametrize("training", [False, True])
def test_the_copied_closure_is_caught(net, images, training):
    """apex's opt levels: an instance-level forward, which deepcopy shares, runs the original; in training mode it drops out."""
    forward = net.forward

    def patched(x):
        return forward(x.float())

    trap = copy.deepcopy(net)
    trap.forward = patched
    if training:
        net[5].train()  # the original was never switched to eval mode where it matters
        net[1].train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert check_in_use(net, trap, WEIGHTS, images) == WEIGHTS
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_module_that_holds_another_copy_is_caught(net, images):
    class Stale(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.frozen = inner, inner[0].weight.detach().clone()

        def forward(self, x):
            x = nn.functional.conv2d(x, self.frozen, self.inner[0].bias, padding=1)
            return self.inner[1:](x)

    wrapped = Stale(net).eval()
    used = probe(wrapped, net, [*WEIGHTS, "0.bias", "1.running_var", "1.num_batches_tracked"], images)
    expected = {"0.weight": False, "6.weight": True, "0.bias": True, "1.running_var": True, "1.num_batches_tracked": False}
    assert used == expected


def test_what_the_reference_does_not_use_is_left_out(images):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(64, 4), nn.Linear(64, 4)

        def forward(self, x):
            return self.used(x.flatten(1))

    net = Spare().eval()
    assert probe(net, net, ["used.weight", "spare.weight"], images) == {"used.weight": True, "spare.weight": False}
    assert check_in_use(net, copy.deepcopy(net), ["used.weight", "spare.weight"], images) == []


def test_zeros_and_dead_channels_respond(net, images):
    with torch.no_grad():
        net[0].weight.zero_()
        net[1].bias.fill_(-50.0)  # nothing passes the ReLU
    assert probe(net, net, ["0.weight", "1.bias"], images)["1.bias"]
    assert probe(net, net, ["6.bias"], images)["6.bias"]


def test_probing_restores_every_bit(net, images):
    names = list(net.state_dict())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    probe(net, net, names, images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_an_unknown_name_raises(net, images):
    with pytest.raises(KeyError, match="9.weight"):
        probe(net, net, ["9.weight"], images)


def test_training_mode_is_refused(net, images):
    with pytest.raises(RuntimeError, match="training mode"):
        check_in_use(net, copy.deepcopy(net).train(), WEIGHTS, images)
