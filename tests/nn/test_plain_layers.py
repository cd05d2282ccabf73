"""Layers that functions compute become modules, under the names of their weights, and compute the same."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from qexp.nn.activation_points import activations
from qexp.nn.graph import trace
from qexp.nn.layer_calls import layer_calls
from qexp.nn.plain_layers import computed_weights, layers_as_modules, with_plain_layers


class Same(nn.Conv2d):
    """Pads by itself, as networks ported from TensorFlow do."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, self.padding, groups=self.groups)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.same, self.plain = Same(2, 4, 3, stride=2, groups=2, bias=False), nn.Conv2d(4, 4, 1)
        self.matrix = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        x = self.plain(self.same(x))
        x = F.conv2d(x, self.plain.weight, self.plain.bias)  # the plain layer once more
        return F.linear(x.mean((2, 3)), self.matrix) + F.conv2d(x, self.same.weight.sum() * torch.ones(3, 4, 1, 1)).mean((2, 3))


def test_functions_become_modules():
    torch.manual_seed(0)
    net, images = Net().eval(), torch.randn(2, 2, 6, 6)
    network = trace(net, images).build()
    whole = layers_as_modules(network)
    assert [call.weight for call in layer_calls(network)] == ["same.weight", "plain.weight", "plain.weight", "matrix"]
    assert [(call.node.op, call.weight) for call in layer_calls(whole)] == [
        ("call_module", name)
        for name in ("same.weight", "plain.weight", "conv2d_1.weight", "matrix_linear.weight", "conv2d_2.weight")
    ]
    assert torch.equal(whole(images), net(images)) and torch.equal(network(images), net(images))
    same = whole.get_submodule("same")
    assert type(same) is nn.Conv2d and (same.stride, same.groups, same.bias) == ((2, 2), 2, None)
    parameters = dict(whole.named_parameters(remove_duplicate=False))
    assert (
        parameters["conv2d_1.weight"] is parameters["plain.weight"] and parameters["matrix_linear.weight"] is parameters["matrix"]
    )
    assert parameters["plain.weight"] is not net.plain.weight and net.state_dict().keys() <= whole.state_dict().keys()
    assert type(net.same) is Same and layers_as_modules(whole) is whole


class Scaled(nn.Conv2d):
    """Holds more than its weight, which a module in its place would lose."""

    def __init__(self):
        super().__init__(2, 2, 1)
        self.gain = nn.Parameter(torch.full((2, 1, 1), 3.0))

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, stride=(1,)) * self.gain


def test_what_else_a_layer_holds_stays():
    torch.manual_seed(0)
    net, images = nn.Sequential(), torch.randn(2, 2, 3, 3)
    net.conv2d = nn.Sequential(Scaled())  # bears the name that the call has in the graph
    whole = layers_as_modules(trace(net.eval(), images).build())
    assert torch.equal(whole(images), net(images))
    assert net.state_dict().keys() <= whole.state_dict().keys()


def test_a_network_whose_layers_are_modules_stays_itself():
    net, images = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten()), torch.randn(1, 2, 3, 3)
    plain = with_plain_layers(net, images)
    assert plain.network is net and not plain.changed


class Caching(nn.Module):
    """Keeps what it computed, and branches on it: no trace follows."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(2, 2, 1, 1))

    def forward(self, x):
        self.cache = F.conv2d(x, self.kernel)
        return self.cache if self.cache.sum() > 0 else x


def test_a_network_that_cannot_be_traced_stays_as_it_was():
    net = Caching().train()
    plain = with_plain_layers(net, torch.randn(1, 2, 3, 3))
    assert plain.network is net and net.training and not hasattr(net, "cache")


class OneImage(nn.Module):
    """Can be followed, but takes one image at a time."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(2, 2, 1, 1))

    def forward(self, x):
        return F.conv2d(x.reshape(1, 2, 3, 3), self.kernel)


def test_a_network_whose_twin_cannot_be_compared_stays_as_it_was():
    net = OneImage()
    plain = with_plain_layers(net, torch.randn(1, 2, 3, 3))
    assert plain.network is net and not plain.changed


class SequenceFirst(nn.Module):
    """Decides by the images' size; tokens come before images, then pairs of images' rows before channels."""

    def __init__(self):
        super().__init__()
        self.token, self.weight = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        assert x.shape[2] % 2 == 0
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([self.token.expand(1, x.shape[1], 4), x])  # [17, N, 4]
        rows = x[1:].unflatten(0, (4, 4)).transpose(1, 2).flatten(0, 1)  # [4 N, 4, 4]
        rows = F.linear(rows, self.weight).view(rows.shape[0] * 2, 2, 4)
        return rows.view(4, x.shape[1], -1).sum((0, 2)) + x[0].sum(1)


@torch.no_grad()
def test_the_number_of_images_may_stand_anywhere():
    torch.manual_seed(0)
    net = SequenceFirst().eval()
    plain = with_plain_layers(net, torch.randn(1, 4, 4, 4))
    assert plain.changed and [call.node.op for call in layer_calls(plain.network)] == ["call_module"]
    for count in (1, 2, 3, 5):
        images = torch.randn(count, 4, 4, 4)
        assert torch.equal(plain.network(images), net(images))


class Attends(nn.Module):
    """A weight that is computed, and attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.attention = nn.Conv2d(2, 8, 1), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = F.conv2d(x, self.conv.weight * 2, self.conv.bias).flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, self.attention(x, x, x, need_weights=False)[0])


@torch.no_grad()
def test_attention_is_not_entered_before_it_is_quantized():
    """The float network's numbers are its own bit by bit."""
    torch.manual_seed(0)
    net, images = Attends().eval(), torch.randn(3, 2, 5, 5)
    plain = with_plain_layers(net, images[:1])
    assert plain.computed == ("conv.weight",) and plain.network.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(plain.network(images), net(images))
    traced = trace(plain.network, images[:1])
    products = [[node for node in graph.nodes if node.target is torch.matmul] for graph in (plain.network.graph, traced.graph)]
    assert list(map(len, products)) == [0, 4] and all(info.entered for info in activations(traced))


def test_weights_that_diverged_are_followed():
    net, images = Attends().eval(), torch.randn(2, 2, 5, 5)
    torch.nn.init.constant_(net.conv.weight, torch.nan)
    plain = with_plain_layers(net, images)
    assert plain.computed == ("conv.weight",) and plain.network.state_dict()["conv.weight"].isnan().all()
    assert trace(net, images).build()(images).isnan().all()  # with attention entered


class Computed(nn.Module):
    """One weight is computed of a module's, which another function reads as it is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)

    def forward(self, x):
        return F.conv2d(x, self.conv.weight * 2) + F.conv2d(x, self.conv.weight)


def test_a_weight_that_is_computed_and_read_has_both_values():
    torch.manual_seed(0)
    net, images = Computed().eval(), torch.randn(2, 2, 3, 3)
    plain = with_plain_layers(net, images[:1])
    assert plain.computed == computed_weights(net, images[:1]) == ("conv2d.weight",)
    state = plain.network.state_dict()
    assert torch.equal(state["conv2d.weight"], 2 * net.conv.weight) and torch.equal(state["conv.weight"], net.conv.weight)
    assert torch.equal(plain.network(images), net(images)) and plain.network(images).isfinite().all()


class Normalized(nn.Module):
    """Its weight is computed of two tensors, one of which another layer reads as it is; a third nobody reads."""

    def __init__(self):
        super().__init__()
        self.v, self.gain, self.bias = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 4), (4, 1), (4,)))
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.v
        self.unread = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = F.linear(x.flatten(1), self.gain * self.v / self.v.norm(dim=1, keepdim=True), self.bias)
        return self.tied(x) if hasattr(self, "tied") else x


@torch.no_grad()
def test_what_only_a_computed_weight_read_is_no_longer_held():
    torch.manual_seed(0)
    net, alone, images = nn.Sequential(Normalized()), nn.Sequential(Normalized()), torch.randn(2, 1, 2, 2)
    del alone[0].tied
    for network, names in ((net, ("0.gain",)), (alone, ("0.gain", "0.v"))):
        plain = with_plain_layers(network, images[:1])
        assert (plain.dropped, plain.version) == (names, 2)
        state = plain.network.state_dict()
        assert state.keys() == (network.state_dict().keys() - {*names}) | {"linear.weight", "linear.bias"}
        assert plain.network.get_parameter("linear.bias") is plain.network.get_parameter("0.bias")
        assert torch.equal(plain.network(images), network(images))
        copy.deepcopy(plain.network).load_state_dict(state)
    assert with_plain_layers(Attends(), torch.randn(1, 2, 5, 5)).version == 1
