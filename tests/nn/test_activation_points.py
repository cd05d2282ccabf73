"""The activation points of networks that are small enough to count by hand, and of ResNet-20."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.models.cifar_resnet import CifarResNet
from qexp.nn.activation_points import activations, find_activation_points
from qexp.nn.graph import trace


def infos(net, graphs, **options):
    return {info.name: info for info in activations(trace(net.eval(), graphs.images(1)), **options)}


def test_residual(graphs):
    points = infos(graphs.Residual(), graphs)
    assert list(points) == ["input", "relu", "bn2", "relu_1", "mean", "unused"]
    assert points["input"].operator == "image" and points["input"].layers == ("conv1.weight",)
    # One point behind conv, norm and ReLU; max pooling passes the codes on to the convolution and to the add.
    assert points["relu"].operator == "conv+norm+relu" and points["relu"].consumers == ("conv2", "add")
    assert points["relu"].norm == "bn1" and points["relu"].non_negative and points["relu"].shape == (8, 16, 16)
    # Before the add; the add's result behind its ReLU; the average, which dropout passes on.
    assert points["bn2"].operator == "conv+norm" and points["bn2"].consumers == ("add",) and not points["bn2"].non_negative
    assert points["relu_1"].operator == "add+relu" and points["relu_1"].kinds == ("pool",) and points["relu_1"].norm is None
    assert points["mean"].layers == ("head.weight",) and points["mean"].non_negative
    assert not points["unused"].executed and points["unused"].layers == ("unused.weight",) and points["unused"].order == -1


def test_inception(graphs):
    points = infos(graphs.Inception(), graphs)
    # The stem's max pooling joins the concatenation, so that the stem's codes share its scale.
    joined = points["cat"]
    assert joined.operator == "concat" and joined.producers == ("relu6", "one.1", "two.2") and not joined.non_negative
    assert joined.consumers == ("one.0", "two.0", "cat", "adaptive_avg_pool2d", "mul")
    assert points["two.1"].operator == "conv+hardswish"
    assert points["sigmoid"].operator == "conv+sigmoid" and points["sigmoid"].non_negative
    assert points["mul"].operator == "multiply" and points["mul"].consumers == ("adaptive_avg_pool2d_1",)
    assert list(points) == [
        *("input", "cat", "two.1", "adaptive_avg_pool2d", "relu", "sigmoid", "mul", "adaptive_avg_pool2d_1")
    ]  # fmt: skip


def test_functions_products_and_attention(graphs):
    points = infos(graphs.Functional(), graphs)
    assert points["input"].layers == ("kernel",)
    assert points["mean"].layers == ("weight",) and points["mean"].kinds == ("linear",)
    assert points["norm"].layers == ("attention.in_proj_weight",) and points["norm"].kinds == ("linear",)
    assert points["attention.linear"].consumers == ("attention.matmul", "attention.matmul_1")  # queries, keys and values
    assert points["attention.softmax"].consumers == ("attention.matmul_1",)
    assert points["attention.matmul_1"].layers == ("attention.out_proj.weight",)
    # A constant is added on the accumulator: one point with the convolution, read by the residual add; flatten passes it.
    assert points["add"].operator == "conv+add" and points["add"].channel_axis == 2
    assert points["add_1"].consumers == ("matmul", "matmul_1") and points["softmax"].consumers == ("matmul_1",)
    assert points["softmax"].operator == "matmul+softmax" and points["softmax"].non_negative


@pytest.mark.parametrize("layers_only", [False, True])
def test_resnet20(graphs, layers_only):
    points = infos(CifarResNet(20), graphs, layers_only=layers_only)
    # 19 convolutions and a linear layer read 20 values. Static, the 9 blocks add a point before each add, and the average reads
    # one that no layer does.
    assert len(points) == (20 if layers_only else 20 + 9 + 1)
    layers = [layer for info in points.values() for layer in info.layers]
    assert sorted(layers) == sorted(name for name in CifarResNet(20).state_dict() if name.endswith("weight") and "bn" not in name)


def test_places_at_layers_lie_where_layers_read(graphs):
    points = infos(graphs.Residual(), graphs, layers_only=True)
    assert [name for name, info in points.items() if info.executed] == ["input", "pool", "dropout"]
    assert points["pool"].consumers == ("conv2",)


class Aliases(nn.Module):
    """A view of an activation that is read after it, and a value that is its own input."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        before = self.one(x)
        after = F.relu(before, inplace=True)
        return self.two(after) + before[:, :, :1, :1].exp()


def test_memory_that_is_read_again_is_not_overwritten(graphs):
    points = {point.info.name: point for point in find_activation_points(trace(Aliases().eval(), graphs.images(1)))}
    assert points["relu"].overwritable == (False,) and points["input"].overwritable == (False,)
    assert points["two"].overwritable == (True,)


def test_a_relu_of_codes_shares_their_place(graphs):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.one(x)
            return self.two(x.relu()) + self.three(x)

    points = infos(Shared(), graphs)
    assert list(points) == ["input", "one", "two", "three"]
    assert points["one"].consumers == ("two", "three") and not points["one"].non_negative


def test_padding_with_zeros_passes_codes_and_other_padding_does_not(graphs):
    def padded(value):
        class Padded(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

            def forward(self, x):
                return self.two(F.pad(self.one(x), (1, 1, 1, 1), value=value))

        return list(infos(Padded(), graphs))

    assert padded(0.0) == ["input", "one"]
    assert padded(1.0) == ["input", "pad"]


def test_the_batch_norm_before_a_place(graphs):
    def norm(last):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), last, nn.Conv2d(4, 4, 1))
        return infos(net, graphs)[f"{2 if type(last) is not nn.Dropout else 1}"].norm

    assert [norm(last) for last in (nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Dropout())] == ["1", "1", None, "1"]


def test_nothing_but_the_graph_decides(graphs):
    net = graphs.Inception().eval()
    once = activations(trace(net, graphs.images(1)))
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(0.1)
    assert activations(trace(net, graphs.images(1, seed=5))) == once


class Rows(nn.Module):
    """Channels last, two heads of 4 channels, and a class token."""

    def __init__(self):
        super().__init__()
        self.patch, self.wide, self.qkv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 24), nn.Linear(8, 5)
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.patch(x)
        x = x + self.mix(x)
        x = self.wide(F.gelu(x.permute(0, 2, 3, 1)))
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        x = torch.softmax(q.sigmoid() @ k.sigmoid().transpose(-2, -1), -1) @ v.sigmoid()
        return self.head(x.transpose(1, 2).flatten(2)[:, 0])


@pytest.mark.parametrize("layers_only", [False, True])
def test_channels_lie_along_what_a_reader_sums_over(graphs, layers_only):
    points = infos(Rows(), graphs, layers_only=layers_only)
    axes = {(info.consumers[0], info.producers[0]): (len(info.shape) + 1, info.channel_axis) for info in points.values()}
    assert axes["patch", "input"] == (4, 1) and axes["mix", "patch"] == (4, 1)
    assert axes["wide", "gelu"] == (4, 3)  # [N, H, W, C]
    assert axes["matmul", "sigmoid"] == (4, 3)  # queries, [N, heads, L, d]
    assert axes["matmul", "transpose" if layers_only else "sigmoid_1"] == (4, 2 if layers_only else 3)  # keys: [N, heads, d, L]
    assert axes["matmul_1", "softmax"] == (4, 3) and axes["matmul_1", "sigmoid_2"] == (4, 2)  # values: their L
    if not layers_only:
        assert axes["qkv", "wide"] == (4, 3)  # before it is flattened
        assert axes["head", "matmul_1"] == (4, 3)  # of [N, heads, L, d], whose heads and d the layer reads joined
