"""Programs of torch.export: the simulation's numbers, integer weights, and what they do not hold."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qexp.base.errors import UserError
from qexp.deploy import torch_export
from qexp.deploy.torch_export import open_program, save_program


def images(n=6, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """The program as it stands."""
    monkeypatch.setattr(torch_export, "has_compiler", lambda: False)


class Shared(nn.Module):
    """One layer called twice, a kernel that a function reads, a weight that both a layer and a function read."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1) / 2)
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.twice(F.relu(self.twice(F.relu(self.stem(x))))))
        x = F.conv2d(x, self.kernel).mean((2, 3))
        return self.last(x) + F.linear(x, self.last.weight)


@pytest.mark.parametrize(
    "options",
    [{}, {"bits": 4}, {"granularity": "per_tensor", "weight_scheme": "affine"}, {"act_bits": 16}, {"places": "layers"}],
    ids=str,
)
def test_the_program_is_the_simulation(quantized, options, tmp_path):
    torch.manual_seed(0)
    case = quantized(Shared(), images(), divide=False, **options)
    codes, logits = case.simulate()
    save_program(case.network, case.images, case.weights, tmp_path / "sub" / "net.pt2")
    run = open_program(tmp_path / "sub" / "net.pt2", list(codes))
    result, *mine = run(case.images, True)
    for point, values in zip(codes, mine, strict=True):
        assert (values.int() - (32768 if options.get("act_bits") == 16 else 128) - codes[point]).abs().max() <= 1
    assert torch.allclose(result, logits, atol=1e-4 * float(logits.abs().max()))
    assert torch.allclose(run(case.images[:2], False)[0], logits[:2], atol=1e-4 * float(logits.abs().max()))
    state = torch.export.load(tmp_path / "sub" / "net.pt2").state_dict
    dtypes = {name: value.dtype for name, value in state.items()}
    assert dtypes["stem.codes"] == torch.int8 and dtypes["twice.codes"] == torch.int8 and "stem.weight" not in dtypes
    assert dtypes["last.weight"] == torch.float32, "a function reads it too"


def test_a_float_network_is_a_program_too(graphs, tmp_path):
    from qexp.nn.graph import trace

    torch.manual_seed(0)
    model = graphs.Inception().eval()
    save_program(trace(model, images(1)).build(), images(1), {}, tmp_path / "net.pt2")
    with torch.no_grad():
        assert torch.allclose(open_program(tmp_path / "net.pt2")(images(), False)[0], model(images()), atol=1e-6)


def test_ranges_of_each_batch_and_rounded_images_are_refused(quantized, graphs, tmp_path):
    case = quantized(graphs.Residual(), images(), dynamic=True)
    with pytest.raises(UserError, match=r"quant\.activation\.dynamic=true"):
        save_program(case.network, case.images, case.weights, tmp_path / "net.pt2")
    case.network.register_forward_pre_hook(lambda _, arguments: (arguments[0].round(),))
    with pytest.raises(UserError, match=r"quant\.input"):
        save_program(case.network, case.images, case.weights, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())
