"""What quantization-aware training does not do, asked for in whole commands: one line each, exit code 2, nothing started."""

from pathlib import Path

import pytest
import torch

REFUSED = [
    (("qat=lsqq",), ["qat=lsqq", "lsq_plus", "Did you mean lsq?"]),
    (("qat=lsq", "mode=float"), ["mode=float", "int with qat=lsq", "float_only=true"]),
    (("qat=lsq", "mode=half"), ["mode=half", "int with qat=lsq"]),
    (("qat=lsq", "correct.fold_bn=true"), ["correct=fold_bn", "none with qat=lsq", "qat.batch_norm=folded"]),
    (("qat=ste", "correct.bias=empirical", "quant=symmetric"), ["correct=bias_empirical", "none with qat=ste"]),
    (("qat=lsq", "quant=apot"), ["quant=apot", "linear with qat=lsq", "a quantizer of its own"]),
    (("qat=ste", "quant=apot"), ["quant=apot", "symmetric_restricted", "affine"]),
    (("qat=lsq", "quant.weight.granularity=per_group"), ["quant.weight.granularity=per_group", "per_tensor or per_channel"]),
    (("qat=dorefa", "quant.weight.granularity=per_channel"), ["quant.weight.granularity=per_channel", "per_tensor with"]),
    (("qat=lsq", "quant.activation.dynamic=true"), ["quant.activation.dynamic=true", "false with qat=lsq"]),
    (("qat=lsq", "quant.activation.scheme=symmetric"), ["quant.activation.scheme=symmetric", "affine with qat=lsq"]),
    (("qat=lsq", "quant.input=int"), ["quant.input=int", "none with qat=lsq", "policy=first_last"]),
    (("qat=lsq", "qat.init=checkpoint"), ["qat.init=checkpoint", "a network with model.weights", "model.weights=FILE"]),
    (("qat=lsq", "qat.init=none", "model.weights=w.pt"), ["qat.init=none", "random weights", "qat.init=checkpoint"]),
    (("qat=lsq", "bits=1"), ["bits=1", "at least 2", "qat=lsq"]),
    (("qat=lsq", "data.num_calib=0"), ["calibrate.split=calib", "a split that holds images", "data.num_calib=N"]),
    (("qat=every_step", "qat.batch_norm=folded"), ["qat.batch_norm=folded", "unfolded with qat=every_step"]),
    (("qat=lsq", "qat.batch_norm=folded", "qat.reestimate_bn=true"), ["qat.reestimate_bn=true", "false with"]),
    (("qat=lsq", "qat.init=none", "qat.distill_weight=0.5"), ["qat.distill_weight=0.5", "0 with qat.init=none"]),
    (("qat=lsq", "float_only=true"), ["float_only=true", "false with qat"]),
    (("qat=lsq", "calibrate.weights=mse"), ["calibrate.weights=mse", "its default with qat=lsq"]),
    (("qat=lsq", "qat.epochs=0"), ["qat.epochs=0", "from 1 to 100000"]),
    (("qat=lsq", "qat.lr=0"), ["qat.lr=0"]),
    (("qat=lsq", "qat.momentom=0.5"), ["qat.momentom=0.5", "Did you mean qat.momentum?"]),
]  # fmt: skip


def refused(done):
    """The lines that say why; asserts that nothing was started."""
    assert done.code == 2, done.err
    first, *rest = done.err.splitlines()
    assert first == "qexp: nothing was started."
    assert "Traceback" not in done.err + done.out
    assert not Path("runs/trainings").exists() and not Path("results").exists()
    return rest


@pytest.mark.parametrize("arguments, parts", REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_bad_input_is_refused_in_one_line(cli, tiny, arguments, parts):
    torch.save({}, "w.pt")
    (line,) = refused(cli(*tiny, *arguments))
    assert all(part in line for part in parts), line


def test_the_mistakes_of_all_jobs_are_told_together(cli, tiny):
    lines = refused(cli(*tiny, "qat=lsq,dorefa", "mode=int,float", "quant.weight.granularity=per_tensor,per_channel", "-m"))
    assert len(lines) == 3, lines
    assert any("mode=float" in line and "qat=lsq" in line and "(job #2, #3 of 8)" in line for line in lines)
    assert any("mode=float" in line and "qat=dorefa" in line and "(job #6, #7 of 8)" in line for line in lines)
    assert any("granularity=per_channel" in line and "qat=dorefa" in line and "of 8)" in line for line in lines)


def test_of_widths_that_a_method_lacks_each_is_told_once(cli, tiny):
    lines = refused(cli(*tiny, "qat=lsq,pact", "bits=1,4", "-m"))
    assert [line.count("bits=1") for line in lines] == [1], lines
    assert "at least 2" in lines[0] and "qat=lsq" in lines[0]


def test_networks_that_cannot_be_traced_are_refused_before_anything_starts(cli, tiny):
    Path("branching.py").write_text(
        "from torch import nn\n"
        "class Branching(nn.Module):\n"
        "    def __init__(self, num_classes, in_channels):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(64 * in_channels, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))\n"
    )
    kept = [text for text in tiny if not text.startswith("model.factory=")]
    (line,) = refused(cli(*kept, "model.factory=branching.py:Branching", "qat=lsq"))
    assert "model=Branching" in line and "torch.fx" in line
