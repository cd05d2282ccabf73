"""Vision transformers of torchvision and timm at a small size: simulated, in integers and in a file, beside plain torch.

`Plain` below is each network written down again from its state dict, with a quantizer wherever an integer runtime has codes. It
uses nothing of qexp and none of the libraries' attention.
"""

import importlib.util
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import nn

from qexp.base.modules import named_tensors
from qexp.base.torchvision_compat import torchvision
from qexp.deploy.coded_network import names_read
from qexp.deploy.cost import layer_bits
from qexp.deploy.fidelity import planned_layers
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.runtimes import open_runtime
from qexp.deploy.stages import FLOAT, INTEGER, SIMULATED, Outcome, StageComparison
from qexp.deploy.torch_export import save_program
from qexp.models.timm import timm
from qexp.nn.macs import macs_per_layer
from qexp.nn.plain_layers import layers_as_modules

HEADS, CLASSES, PATCH = 2, 10, 8


def photographs(n=3, size=32):
    """Pieces of scikit-learn's two photographs, normalized."""
    whole = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images]).permute(0, 3, 1, 2) / 255
    pieces = whole.unfold(2, 128, 96).unfold(3, 128, 96).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 128, 128)
    return (F.interpolate(pieces[:: len(pieces) // n][:n], size=size, mode="area") - 0.45) / 0.22


def vit():
    models = torchvision().models
    return models.VisionTransformer(32, PATCH, 2, HEADS, 32, 64, num_classes=CLASSES)


def swin():
    models = torchvision().models
    return models.SwinTransformer([4, 4], 16, [2, 2], [HEADS, HEADS], [4, 4], num_classes=CLASSES)


def deit():
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm: pip install 'qexp[timm]'")
    options = {"img_size": 32, "patch_size": PATCH, "depth": 2, "embed_dim": 32, "num_heads": HEADS, "num_classes": CLASSES}
    return timm().create_model("deit_tiny_patch16_224", **options)


def randomized(model):
    """Weights of ordinary size everywhere, biases and embeddings too, which these libraries begin with zeros or nearly."""
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=value[0].numel() ** -0.5 if value.dim() > 1 else 0.3)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1.0)
    return model.eval()


class Plain:
    """One forward pass over a state dict with 8-bit weights, per channel, and a quantizer at each value that is read as codes."""

    def __init__(self, state):
        self.state, self.ranges, self.calibrates = state, [], True

    def weight(self, name):
        w = self.state[name]
        scale = (w.flatten(1).abs().amax(1) / 127).reshape(-1, *[1] * (w.dim() - 1))
        return (w / scale).round().clamp(-127, 127) * scale

    def codes(self, x):
        """x -> scale (clamp(round(x / scale) + zero point) - zero point), of the range of the calibration's pass."""
        if self.calibrates:
            self.ranges.append((min(x.min().item(), 0.0), max(x.max().item(), 0.0)))
            return x
        low, high = torch.tensor(self.ranges[self.number])
        self.number += 1
        scale = ((high.double() - low.double()) / 255).float()
        zero_point = (-128 - low.double() / scale.double()).round().clamp(-128, 127).float()
        return (((x / scale).round() + zero_point).clamp(-128, 127) - zero_point) * scale

    def linear(self, x, name, quantized=True):
        y = F.linear(x, self.weight(f"{name}.weight"), self.state[f"{name}.bias"])
        return self.codes(y) if quantized else y

    def norm(self, x, name, eps):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def attention(self, x, qkv, out, mask=0.0):
        """[..., L, E], of whatever is before."""
        weight = self.weight(qkv[0])
        mixed = self.codes(F.linear(x, weight, self.state[qkv[1]]))
        split = mixed.unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-3, -2)  # 3, ..., heads, L, E / heads
        q, k, v = split
        share = self.codes((torch.einsum("...qd,...kd->...qk", q, k) * q.shape[-1] ** -0.5 + mask).softmax(-1))
        values = self.codes(torch.einsum("...qk,...kd->...qd", share, v)).transpose(-3, -2).flatten(-2)
        return self.linear(values, out)

    def block(self, x, names, eps):
        """A transformer's block of torchvision's or timm's ViT."""
        first, qkv, out, second, fc1, fc2 = names
        x = self.codes(x)
        x = self.codes(x + self.attention(self.codes(self.norm(x, first, eps)), qkv, out))
        hidden = self.codes(F.gelu(self.linear(self.codes(self.norm(x, second, eps)), fc1, quantized=False)))
        return x + self.linear(hidden, fc2)

    def vit(self, images, conv, token, position, blocks, norm, head):
        x = F.conv2d(self.codes(images), self.weight(f"{conv}.weight"), self.state[f"{conv}.bias"], stride=PATCH)
        x = self.codes(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.state[token].expand(len(x), -1, -1), x], 1) + self.state[position]
        for names in blocks:
            x = self.block(x, names, 1e-6)
        return self.linear(self.codes(self.norm(x, norm, 1e-6))[:, 0], head, quantized=False)

    def swin(self, images):
        x = F.conv2d(self.codes(images), self.weight("features.0.0.weight"), self.state["features.0.0.bias"], stride=4)
        x = self.norm(x.permute(0, 2, 3, 1), "features.0.2", 1e-5)
        x = self.swin_block(self.swin_block(x, "features.1.0", 8, 0), "features.1.1", 8, 2)
        parts = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        x = self.codes(self.norm(torch.cat(parts, -1), "features.2.norm", 1e-5))
        x = F.linear(x, self.weight("features.2.reduction.weight"))
        x = self.swin_block(self.swin_block(x, "features.3.0", 4, 0), "features.3.1", 4, 0)  # one window: nothing to shift
        x = self.codes(self.norm(x, "norm", 1e-5)).mean((1, 2))
        return self.linear(self.codes(x), "head", quantized=False)

    def swin_block(self, x, name, side, shift):
        x = self.codes(x)
        y = self.codes(self.norm(x, f"{name}.norm1", 1e-5)).roll((-shift, -shift), (1, 2))
        windows = y.unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).transpose(2, 3).flatten(3, 4)  # N, rows, columns, pixels, E
        table, index = (self.state[f"{name}.attn.relative_position_{end}"] for end in ("bias_table", "index"))
        mask = table[index].reshape(16, 16, HEADS).permute(2, 0, 1)
        if shift:  # pixels that rolling brought together from two ends do not see each other
            end = (torch.arange(side) >= side - shift).long() + (torch.arange(side) >= side - 4).long()
            region = (3 * end[:, None] + end).unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
            mask = mask - 100.0 * (region[..., None] != region[..., None, :])[:, :, None]
        names = [f"{name}.attn.qkv.{kind}" for kind in ("weight", "bias")]
        y = self.attention(windows, names, f"{name}.attn.proj", mask)
        y = y.unflatten(3, (4, 4)).transpose(2, 3).flatten(3, 4).flatten(1, 2).roll((shift, shift), (1, 2))
        x = self.codes(x + y)
        hidden = self.codes(
            F.gelu(self.linear(self.codes(self.norm(x, f"{name}.norm2", 1e-5)), f"{name}.mlp.0", quantized=False))
        )
        return x + self.linear(hidden, f"{name}.mlp.3")


def plain_vit(images, self):
    blocks = []
    for number in range(2):
        path = f"encoder.layers.encoder_layer_{number}"
        attention = [f"{path}.self_attention.in_proj_{kind}" for kind in ("weight", "bias")]
        blocks.append(
            (f"{path}.ln_1", attention, f"{path}.self_attention.out_proj", f"{path}.ln_2", f"{path}.mlp.0", f"{path}.mlp.3")
        )
    return self.vit(images, "conv_proj", "class_token", "encoder.pos_embedding", blocks, "encoder.ln", "heads.head")


def plain_deit(images, self):
    blocks = []
    for number in range(2):
        path = f"blocks.{number}"
        attention = [f"{path}.attn.qkv.{kind}" for kind in ("weight", "bias")]
        blocks.append((f"{path}.norm1", attention, f"{path}.attn.proj", f"{path}.norm2", f"{path}.mlp.fc1", f"{path}.mlp.fc2"))
    return self.vit(images, "patch_embed.proj", "cls_token", "pos_embed", blocks, "norm", "head")


def plain_swin(images, self):
    return self.swin(images)


# Of one image: N tokens, E channels. Attention: 3 N E^2 + N E^2 of its layers, 2 N^2 E of its products; 2 N E H behind it.
VIT_MACS = 16 * 32 * 3 * 64 + 2 * (4 * 17 * 32**2 + 2 * 17**2 * 32) + 32 * CLASSES
MACS = {
    "vit": VIT_MACS + 2 * 2 * 17 * 32 * 64,
    "deit": VIT_MACS + 2 * 2 * 17 * 32 * 128,
    "swin": 64 * 16 * 48 + 2 * (4 * 64 * 16**2 + 2 * 64 * 16 * 16 + 8 * 64 * 16**2) + 16 * 64 * 32
    + 2 * (4 * 16 * 32**2 + 2 * 16 * 16 * 32 + 8 * 16 * 32**2) + 32 * CLASSES,
}  # fmt: skip
NETWORKS = {"vit": (vit, plain_vit), "deit": (deit, plain_deit), "swin": (swin, plain_swin)}


@pytest.fixture(params=NETWORKS, scope="module")
def case(request, quantized):
    """Name, quantized network, and the logits of the plain simulation of the same weights and ranges."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        make, plain_forward = NETWORKS[request.param]
        model = randomized(make())
        plain = Plain({name: value.clone() for name, value in model.state_dict().items()})
        plain_forward(photographs(), plain)  # ranges
        plain.calibrates, plain.number = False, 0
        logits = plain_forward(photographs(), plain)
        floats = model(photographs())
    assert plain.number == len(plain.ranges)
    assert float((floats - logits).abs().max()) > 1e-2 * float(logits.abs().max()), "as if nothing were quantized"
    case = quantized(model, photographs())
    network = layers_as_modules(case.network)
    named = named_tensors(network)
    weights = {alias: codes for name, codes in case.weights.items() for alias in names_read(network, name, named)}
    return request.param, replace(case, network=network, weights=weights), logits, len(plain.ranges)


def test_simulation_is_that_of_plain_torch(case):
    name, quantized_case, logits, num_points = case
    codes, simulated = quantized_case.simulate()
    assert len(codes) == num_points
    assert torch.allclose(simulated, logits, atol=1e-4 * float(logits.abs().max()))


def test_all_layers_and_products_are_planned_and_run_in_integers(case):
    name, quantized_case, _, _ = case
    network, weights, images = quantized_case.network, quantized_case.weights, quantized_case.images
    planned, ran = planned_layers(network, weights, images[:1]), set()
    _, logits = integer_codes(network, weights, images, ran=ran)
    assert ran == set(planned) and sum(planned.values()) == MACS[name]
    assert macs_per_layer(network, images) == planned
    assert set(layer_bits(network, weights).values()) == {(8, 8)}
    assert torch.equal(logits.argmax(1), quantized_case.simulate()[1].argmax(1))


def test_file_runs_in_integers_and_agrees(case, run_file, tmp_path):
    name, quantized_case, _, _ = case
    exported = quantized_case.export(tmp_path / "net.onnx")
    network, weights = quantized_case.network, quantized_case.weights
    assert {stored for tensor, stored in exported.stored.items() if "weight" in tensor} == {"INT8"}
    simulation = quantized_case.simulate(exported)
    session = open_runtime("onnxruntime", exported.path)
    ran = session.integer_layers()
    planned = set(planned_layers(network, weights, quantized_case.images[:1]))
    # What LayerNorm reads stays float there: Swin's first convolution, for whose float result there is no integer kernel.
    assert planned - ran == ({"features.0.0"} if name == "swin" else set())
    lowered = run_file(exported, quantized_case.images)
    num_blocks = 4 if name == "swin" else 2
    assert lowered.operators["QLinearMatMul"] >= num_blocks and lowered.operators["MatMulIntegerToFloat"] >= num_blocks
    comparison = StageComparison(network, weights, (FLOAT, SIMULATED, INTEGER, "onnxruntime"))
    integers = integer_codes(network, weights, quantized_case.images)
    outcomes = {FLOAT: Outcome(simulation[1]), SIMULATED: Outcome(simulation[1], simulation[0])}
    outcomes |= {INTEGER: Outcome(integers[1], integers[0]), "onnxruntime": Outcome(lowered.logits, lowered.codes)}
    comparison.add(quantized_case.images, simulation[1].argmax(1), outcomes)
    for stage in comparison.stages()[2:]:
        assert (stage.passed, stage.failed_layer, stage.agreement) == (True, None, 1.0)
    alone = session.run(quantized_case.images[:1])  # another number of images than it was written with
    assert torch.allclose(alone, lowered.logits[:1], atol=1e-4 * float(lowered.logits.abs().max()))


@pytest.mark.slow
def test_program_of_torch_computes_the_same(case, tmp_path):
    """But for ties, as it multiplies by 1 / scale."""
    _, quantized_case, _, _ = case
    images, logits = quantized_case.images, quantized_case.simulate()[1]
    save_program(quantized_case.network, images[:1], quantized_case.weights, tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    assert torch.allclose(program(images), logits, atol=0.02 * float(logits.abs().max()))


def test_ranges_of_each_batch(quantized, run_file, tmp_path):
    """Products of two activations whose ranges are the batch's: MatMulInteger with the zero points of both."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = quantized(randomized(vit()), photographs(), dynamic=True)
    exported = case.export(tmp_path / "net.onnx")
    _, logits = case.simulate(exported)
    lowered = run_file(exported, case.images)
    # Two blocks of two linear layers behind attention, and of attention's two functions and two products; the head.
    assert lowered.operators["MatMulIntegerToFloat"] == 2 * (2 + 2 + 2) + 1
    assert torch.allclose(lowered.logits, logits, atol=1e-3 * float(logits.abs().max()))
