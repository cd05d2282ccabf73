"""A traced network computes what the network does, holds what it holds, and says where it cannot be traced."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.base.errors import UserError
from qexp.nn.graph import Insertion, trace


@pytest.fixture(params=["Residual", "Inception", "Functional"])
def net(request, graphs):
    torch.manual_seed(0)
    return getattr(graphs, request.param)().eval()


@torch.no_grad()
def test_same_numbers_names_and_memory(net, graphs):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    network, x = trace(net, graphs.images(1)).build(), graphs.images()
    assert torch.equal(network(x), net(x))
    assert list(network.state_dict()) == list(before)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) and network.state_dict()[name].data_ptr() == value.data_ptr()


@torch.no_grad()
def test_a_deep_copy_is_whole_and_its_own(net, graphs):
    network, x = trace(net, graphs.images(1)).build(), graphs.images()
    twin = copy.deepcopy(copy.deepcopy(network))
    assert list(twin.state_dict()) == list(net.state_dict()) and torch.equal(twin(x), net(x))
    for value in twin.parameters():
        value.mul_(0.5)
    assert torch.equal(network(x), net(x)) and not torch.equal(twin(x), net(x))
    assert "forward" not in twin.__dict__


@torch.no_grad()
def test_a_deep_copy_keeps_what_runs_before(graphs):
    net, x = graphs.Residual().eval(), graphs.images()
    network = trace(net, x[:1]).build()
    network.register_forward_pre_hook(lambda module, args: (args[0].round(),))
    assert torch.equal(copy.deepcopy(network)(x), net(x.round())) and not torch.equal(net(x), net(x.round()))


def test_tracing_leaves_modes_and_buffers(graphs):
    net = graphs.Residual().train()
    net.bn2.eval()
    before = copy.deepcopy(net.state_dict())
    modes = {name: module.training for name, module in net.named_modules()}
    trace(net, graphs.images(2))
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@torch.no_grad()
def test_other_weights_of_the_same_network(net, graphs):
    other = copy.deepcopy(net)
    for value in other.parameters():
        value.mul_(1.5)
    network = trace(net, graphs.images(1)).build(network=other)
    assert torch.equal(network(graphs.images()), other(graphs.images()))


@torch.no_grad()
def test_channels_last_stays(graphs):
    net = graphs.Residual().eval().to(memory_format=torch.channels_last)
    traced = trace(net, graphs.images(1))
    seen = []
    node = next(node for node in traced.graph.nodes if node.target == "conv2")
    keep = nn.Identity()
    keep.register_forward_hook(lambda module, args, output: seen.append(output.is_contiguous(memory_format=torch.channels_last)))
    traced.build([Insertion(node, "seen", keep)])(graphs.images().to(memory_format=torch.channels_last))
    assert seen == [True]


class Choosy(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x.mean((2, 3)) * torch.tensor([1.0, 2.0, 3.0]))


class Fickle(nn.Module):
    """A network whose answer depends on how often it was asked."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_what_cannot_be_traced_is_named(graphs):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Choosy()))
    with pytest.raises(UserError, match=r"model=Sequential.*module 1\.0: .*control flow.*torch.fx.wrap"):
        trace(net, graphs.images(1))


def test_a_graph_that_computes_something_else_is_refused(graphs):
    with pytest.raises(UserError, match="gives other numbers"):
        trace(Fickle(), graphs.images(1))


@torch.no_grad()
def test_tensors_that_a_forward_makes_stay_off_the_network(graphs):
    net = Constant().eval()
    network, x = trace(net, graphs.images(1)).build(), graphs.images()
    assert set(net.__dict__) == set(Constant().__dict__)
    assert torch.equal(network(x), net(x)) and torch.equal(copy.deepcopy(network)(x), net(x))


def test_a_forward_on_an_instance_is_refused(graphs):
    net = graphs.Residual()
    net.head.forward = lambda x: F.linear(x, net.head.weight)
    with pytest.raises(UserError, match="head.forward"):
        trace(net, graphs.images(1))
