"""What a file cannot hold is refused by name, and nothing is written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.base.errors import UserError


def images(n=8, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Strange(nn.Module):
    """An operator that no handler knows, in a module with a name."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 4, 3), Inner(function), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.head(self.inner(self.conv(x))).mean((2, 3))


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Token(nn.Module):
    """Adds a parameter, repeated for each image, to rows whose images come second, or joins it with them."""

    def __init__(self, joins):
        super().__init__()
        self.joins, self.token = joins, nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x):
        rows, token = x.flatten(2).permute(2, 0, 1), self.token.expand(1, x.shape[0], 4)
        rows = torch.cat([rows[1:], token]) if self.joins else rows + token
        return rows.permute(1, 2, 0).unflatten(2, (14, 14))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.erf, r"export=inner\.erf \(erf\)"),
        (nn.LPPool2d(2, 2), r"export=inner\.function \(LPPool2d\)"),
        (nn.AdaptiveAvgPool2d(5), r"adaptive.*\[14, 14\] pixels to \[5, 5\]"),
        (nn.AvgPool2d(3, ceil_mode=True), "ceil_mode"),
        (lambda x: torch.add(x, x, alpha=2), "alpha"),
        (lambda x: x.mean(0, keepdim=True), "single dimension"),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), "not zero"),
        (lambda x: F.conv2d(x, x.mean((0, 2, 3)).reshape(1, 4, 1, 1).expand(4, 4, 1, 1)), "single dimension|expand"),
        (Token(joins=False), r"add.*takes expand, which is another"),
        (Token(joins=True), r"cat.*takes expand, which is another"),
        (lambda x: x / x.shape[0], r"truediv.*takes getitem.*, which is another for another number of images"),
        (lambda x: torch.cat([x, x.sigmoid()]).chunk(2)[0], "chunk.*cuts the batch"),
        (lambda x: torch.cat([x, x.sigmoid()]), "output has 6 rows of 3 images"),
        (nn.Softplus(threshold=1), "threshold is not 20"),
    ],
    # Not str: that of a function holds an address, another in each process.
    ids="erf lp_pool adaptive ceil_mode alpha batch_mean ones expand add_token join_token number chunk rows softplus".split(),
)
def test_what_cannot_be_written_is_named(quantized, function, message, tmp_path):
    torch.manual_seed(0)
    case = quantized(Strange(function), images(), divide=True)
    with pytest.raises(UserError, match=f"(?i){message}") as caught:
        case.export(tmp_path / "sub" / "net.onnx")
    assert "While executing" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "floor"}, r"input\.rounding=floor: allowed is half_even"),
        ({"weight_scheme": "affine"}, r"conv1\.weight=a zero point for each channel.*symmetric_restricted"),
    ],
    ids=str,
)
def test_quantizers_that_a_file_cannot_hold(quantized, graphs, options, message, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), **options)
    with pytest.raises(UserError, match=message):
        case.export(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_rounded_input_is_refused(quantized, graphs, tmp_path):
    case = quantized(graphs.Residual(), images())
    case.network.register_forward_pre_hook(lambda _, arguments: (arguments[0].round(),))
    with pytest.raises(UserError, match=r"quant\.input"):
        case.export(tmp_path / "net.onnx")
