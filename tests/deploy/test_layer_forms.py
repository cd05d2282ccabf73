"""Every way in which people write a layer, through plan, folding, evaluation and export, against a simulation of its own."""

import copy
import importlib
import sys
from pathlib import Path

import pytest
import torch

from qexp.base.errors import UserError, UserErrors
from qexp.deploy import export
from qexp.deploy.activation_codes import code_nodes
from qexp.deploy.alarms import failures
from qexp.deploy.fidelity import FidelityRun, planned_layers
from qexp.deploy.files import write_files
from qexp.deploy.lower import lower
from qexp.deploy.runtimes import open_runtime
from qexp.experiment.build import quantized_copy
from qexp.experiment.unprepared import Unprepared
from qexp.sweep.check import check

for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")

ZOO = Path(__file__).parents[1] / "layer_forms" / "zoo.py"
sys.path.append(str(ZOO.parent))
zoo = importlib.import_module("zoo")
forms = importlib.import_module("layer_form")
FORMS = zoo.FORMS
SETTINGS = (
    "data=digits", "data.num_calib=100", "evaluate.num_images=40", "model=custom", "device=cpu", "checkpoint=checkpoint.pt",
    "export.cost=false", "tracking.enabled=false",
)  # fmt: skip


class Quantizer:
    """Quantizes by the formulas: weights symmetric per channel, activations affine at 8 bits within the range observed first."""

    def __init__(self, bits: int) -> None:
        self.largest, self.ranges, self.observing = 2 ** (bits - 1) - 1, {}, True

    def __call__(self, x, name=None):
        self.count += 1
        name = name or self.count
        if self.observing:
            low, high = self.ranges.get(name, (torch.zeros(()), torch.zeros(())))
            self.ranges[name] = torch.minimum(low, x.min()), torch.maximum(high, x.max())
            return x
        low, high = self.ranges[name]
        scale = (high - low) / 255
        zero_point = torch.round(-low / scale)
        return (torch.clamp(torch.round(x / scale) + zero_point, 0, 255) - zero_point) * scale

    def w(self, weight, axis=0):
        """A weight, of which each channel has a scale."""
        others = [dim for dim in range(weight.dim()) if dim != axis]
        scale = weight.abs().amax(others, keepdim=True) / self.largest
        return torch.round(weight / scale) * scale

    @staticmethod
    def fold(weight, bias, norm, groups=None):
        """Weight and bias with a batch norm in them; `groups` of a transposed convolution, [in, out / groups, ...]."""
        gain = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
        shift = torch.zeros_like(norm.running_var) if norm.bias is None else norm.bias
        gain = gain / torch.sqrt(norm.running_var + norm.eps)
        bias = shift + ((0 if bias is None else bias) - norm.running_mean) * gain
        if groups is None:
            return weight * gain.reshape(-1, *[1] * (weight.dim() - 1)), bias
        grouped = weight.reshape(groups, -1, *weight.shape[1:]) * gain.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        return grouped.reshape_as(weight), bias

    def run(self, name, net, images):
        """The logits of a form; the first run observes."""
        self.count = 0
        logits = forms.simulate(name, net, images, self)
        self.observing = False
        return logits


@pytest.fixture
def job_of(compose, preparer):
    """Prepares the export of a form from a checkpoint, at these widths of weights."""

    def prepare(name, *widths):
        torch.save(forms.network(name).state_dict(), "checkpoint.pt")
        values = compose(*SETTINGS, f"model.factory={ZOO}:net_{name}", verb="export")
        jobs = [copy.deepcopy(values) for _ in widths]
        for job, bits in zip(jobs, widths, strict=True):
            job["bits"], job["quant"]["activation"]["bits"] = bits, 8
        return preparer.prepare(check(jobs, "export"))

    return prepare


def sqnr_db(reference, other):
    return float(10 * torch.log10(reference.double().square().sum() / (reference - other).double().square().sum()))


def check_copy(name, prepared, variant, images, calibration):
    """Plan, folding and logits of one copy; what its logits should be."""
    form, net = FORMS[name], forms.network(name).eval()
    planned = [row.info.name for row in variant.plan.rows if row.spec is not None and row.info.tied_to is None]
    assert sorted(planned) == sorted(["stem.weight", "head.weight", *(f"middle.{weight}" for weight in form.weights)])
    built = quantized_copy(variant, prepared.network().eval(), prepared)
    assert (built.outcomes["fold_bn"].done, built.outcomes["fold_bn"].count) == (form.folded, form.norms)
    torch.testing.assert_close(built.reference(images), net(images), rtol=1e-4, atol=1e-5)
    quantizer = Quantizer(variant.bits)
    quantizer.run(name, net, calibration)
    expected = quantizer.run(name, net, images)
    assert len(code_nodes(built.module)) == quantizer.count
    assert sqnr_db(expected, built.module(images)) > 60  # one point or weight that is left out: below 50
    return expected


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if form.rare else ()) for name, form in FORMS.items() if not form.refused],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@torch.no_grad()
def test_a_form_is_what_it_computes(name, job_of):
    prepared = job_of(name, 8, 4)
    form, config = FORMS[name], prepared.config
    images = torch.cat(
        [batch.images for batch in prepared.bundle.eval_batches("test", batch_size=40, num_images=40, device="cpu")]
    )
    calibration = torch.cat([batch.images for batch in prepared.calibration_images(config.calibrate, torch.device("cpu"))])
    expected = {variant.bits: check_copy(name, prepared, variant, images, calibration) for variant in prepared.variants[1:]}

    variant = prepared.variants[1]
    lowered = lower(prepared, variant)
    assert sum(planned_layers(lowered.network, variant.plan.quantized, images[:1]).values()) == (
        forms.STEM_MACS + form.macs + form.outputs * forms.CLASSES
    )
    exported = write_files(prepared, variant, lowered, Path("network.onnx"))
    run = FidelityRun(config, prepared.network().eval(), lowered, exported, variant.plan.quantized, images[:1])
    stages = {stage.name: stage for stage in run.run(prepared).stages}
    integer, runtime = stages["integer"], stages["onnxruntime"]
    assert list(failures(integer)) == [] and (integer.integer_macs_pct, integer.num_integer) == (100.0, integer.num_planned)
    assert runtime.failed_layer is None
    floats = [name if name == "stem" else f"middle.{name}" for name in form.floats]
    assert list(runtime.float_layers) == floats
    assert all(name in " ".join(failures(runtime)) for name in floats)
    assert sqnr_db(expected[8], open_runtime("onnxruntime", exported.path).run(images)) > 30  # biases are whole steps there


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.refused])
def test_a_form_that_has_no_file_is_refused_by_name(name, job_of):
    with pytest.raises((UserError, UserErrors, Unprepared), match=FORMS[name].refused):
        export.check([job_of(name, 8)])
