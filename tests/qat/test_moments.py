import pytest
import torch

from qexp.nn.fake_quant import observed
from qexp.nn.graph import trace
from qexp.qat.moments import magnitudes, weight_moments


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_moments_of_a_weight(axis):
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.3
    moments = weight_moments(weight, axis, three_sigma=True)
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).flatten(1)
    shape = () if axis is None else (len(rows),)
    expected = {"minimum": rows.amin(1), "maximum": rows.amax(1), "mean_abs": rows.abs().mean(1), "mean": rows.mean(1)}
    expected["std"] = rows.var(1, unbiased=False).sqrt()
    for name, value in expected.items():
        torch.testing.assert_close(getattr(moments, name), value.reshape(shape), msg=name)
    assert moments.three_sigma


def test_magnitudes_count_every_value_once(graphs, kit):
    """Two batches of different size count by their values; batch norm and modes are as before."""
    x = graphs.images(6)
    model = graphs.Residual()
    traced = trace(model, x[:1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watched = observed(traced, layers_only=True)
    sizes = magnitudes(watched, kit.batches(x, 4))
    assert set(sizes) == {"input", "pool", "dropout"}
    assert all(module.training for module in model.modules())
    model.eval()
    values = graphs.values_at(traced, x, layers_only=True)
    for name, value in sizes.items():
        mean, largest = value
        torch.testing.assert_close(mean, values[name][0].abs().mean())
        assert largest == values[name][0].abs().max()
        assert all(part.dtype == torch.float32 and part.shape == () for part in value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
