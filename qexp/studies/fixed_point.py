"""Document 000: fixed point on one convolution, the factor it searches for on an image, and what its caveats ask for.

As published the code does not run, for want of a call. With the call it divides each code by the number of tensors, so that the
factor it searches for between 58 and 66 has the closed form 128 / 2 = 64. Floor errs to one side: at 64 every difference of a 1x1
convolution of three channels in [0, 1] lies in [0, (3 + 1) / 64). Then more than one layer, ReLU, and integers throughout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.config.data import DataSettings
from qexp.config.preprocessing import Preprocessing
from qexp.config.study import StudySettings
from qexp.data.folder import DECODE_ERRORS, decode, scan_tree
from qexp.data.load import load_data
from qexp.studies import fixed_layers as fixed
from qexp.studies.outcome import Check, Curve, Lines, Outcome, expected, yes

FACTORS = torch.arange(58, 66, 0.1)
DEPTHS = (1, 2, 3, 4)
ARITHMETICS = ("as written", "as written, best factor", "normalized in each layer", "Q1.7 floor", "Q1.7 nearest", "integers")


def run(settings: StudySettings) -> Outcome:
    """The search, its closed form, and the caveats, on one image."""
    label, image = load_image(settings)
    return study(label, image)


@torch.no_grad()
def study(label: str, image: Tensor) -> Outcome:
    """The same for an image [1, 3, H, W] in [0, 1]."""
    model = fixed.stack(1, relu=False)
    written = fixed.as_written(model)
    differences = [model(image) - written(image) / factor for factor in FACTORS]
    smallest, largest = ([float(pick(item)) for item in differences] for pick in (torch.min, torch.max))
    at_closed = model(image) - written(image) / fixed.closed_factor(model)
    rows, checks = _caveats(image)
    sqnr = {(row["arithmetic"], row["layers"], row["relu"]): row["sqnr_db"] for row in rows}
    low, high = float(at_closed.min()), float(at_closed.max())
    deep = ", ".join(f"{name} {sqnr[name, DEPTHS[-1], True]:.1f}" for name in ARITHMETICS[1:])
    return Outcome(
        headline=f"The factor is 128 / 2 = {fixed.closed_factor(model):g}; at it the output differs by {low:.4f} to {high:.4f} "
        f"(the document saw 0.04; always below 4/64 = 0.0625). With {DEPTHS[-1]} layers and ReLU no single factor "
        f"is enough; dB: {deep}.",
        subject=f"{label}, {image.shape[3]} x {image.shape[2]} pixels, 1x1 convolutions of 10 channels, seed 0",
        rows=tuple(rows),
        shown=("arithmetic", "layers", "relu", "min_difference", "max_difference", "sqnr_db", "bytes"),
        checks=tuple(_closed_form(model, image) + checks),
        figures=tuple(_plot(*item) for item in (("max", largest), ("min", smallest))),
        notes=(
            "Differences are original less quantized, in units of the output; SQNR of the last layer's output. `as written` "
            "divides it by the factor once for each layer; `best factor` by the one of least squared error.",
            "Fixed point here holds weights, biases, and in `integers` activations too, whose points are set on this same image.",
        ),
    )


def load_image(settings: StudySettings) -> tuple[str, Tensor]:
    """An image [1, 3, H, W] in [0, 1] and what to call it: the user's, else the first test image, else a bundled digit."""
    if settings.image is None and settings.data.root is None:
        data = DataSettings(name="mnist5k", mean=[0.0], std=[1.0], num_test=100)
        batch = next(load_data(data).eval_batches("test", batch_size=1, device="cpu"))
        return "a bundled digit", batch.images.expand(1, 3, -1, -1).contiguous()
    path = Path(settings.image) if settings.image else _first_test_image(settings)
    try:
        pixels = decode(path, Preprocessing())
    except DECODE_ERRORS as error:
        raise UserError("image", path, allowed="an image file", remedy=f"{type(error).__name__}: {error}") from error
    return path.name, pixels[None].float() / 255


def _first_test_image(settings: StudySettings) -> Path:
    tree = scan_tree(DataSettings(name="imagefolder", root=settings.data.root))
    return tree.parts["test"].paths[0]


def _plot(side: str, values: list[float]) -> Lines:
    return Lines(
        stem=f"frame_{side}",
        title=f"{'Largest' if side == 'max' else 'Smallest'} difference to the original output",
        x_label="normalization factor",
        y_label=f"{side} of original - quantized / factor",
        curves=(Curve(label="as the document plots it", x=tuple(FACTORS.tolist()), y=tuple(values)),),
        marked={"128 / number of tensors": 64.0},
    )


def _closed_form(model: torch.nn.Sequential, image: Tensor) -> list[Check]:
    """The document's bug, and its factor."""
    try:
        fixed.without_the_call(model)
        raised = "nothing"
    except TypeError as error:
        raised = f"TypeError: {error}"
    checks = [Check("the code as published", "TypeError, for want of a call", raised, raised.startswith("TypeError"))]
    for bias, factor in ((True, 64), (False, 128)):
        layer = fixed.stack(1, relu=False, bias=bias)
        closed = fixed.closed_factor(layer)
        difference = layer(image) - fixed.as_written(layer)(image) / closed
        low, high, bound = float(difference.min()), float(difference.max()), (3 + bias) / factor
        checks.append(
            Check(
                f"factor {'with' if bias else 'without'} a bias, {1 + bias} tensor{'s' * bias}",
                f"{factor}, differences in [0, {bound:.4f})",
                f"{closed:g}, [{low:.4f}, {high:.4f}]",
                closed == factor and -1e-6 <= low and high < bound,
            )
        )
    return checks


def _caveats(image: Tensor) -> tuple[list[dict[str, Any]], list[Check]]:
    """More than one layer, ReLU, true integers."""
    rows: list[dict[str, Any]] = []
    runs = []
    for depth in DEPTHS:
        for relu in (False, True):
            model = fixed.stack(depth, relu=relu)
            wanted, written = model(image), fixed.as_written(model)(image)
            run = fixed.run_integers(model, image)
            best = float((written * written).sum() / (written * wanted).sum())
            outputs = (
                written / fixed.closed_factor(model) ** depth,
                written / best,
                fixed.normalized(model, image),
                fixed.rounded(model, "floor")(image),
                fixed.rounded(model, "half_even")(image),
                run.output,
            )
            float_bytes = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
            for arithmetic, output in zip(ARITHMETICS, outputs, strict=True):
                num_bytes = run.num_bytes if arithmetic == "integers" else float_bytes
                rows.append(_row(arithmetic, depth, relu, wanted, output, num_bytes))
            runs.append(run)
    sqnr = {(row["arithmetic"], row["layers"], row["relu"]): row["sqnr_db"] for row in rows}
    several = [(depth, relu) for depth in DEPTHS[1:] for relu in (False, True)]
    gain = min(sqnr["normalized in each layer", *case] - sqnr["as written, best factor", *case] for case in several)
    nearest = sum(sqnr["Q1.7 nearest", *case] - sqnr["Q1.7 floor", *case] for case in several) / len(several)
    integers = min(sqnr["integers", *case] for case in several)
    exact, packed = all(run.exact for run in runs), all(run.packed for run in runs)
    return rows, [
        Check("integer accumulators = float32 convolution on the codes", "equal, all layers", yes(exact), exact),
        Check("stored bytes give the codes back", "equal, all layers", yes(packed), packed),
        expected(
            "several layers: normalizing in each against the best single factor", "better", f"{gain:+.1f} dB or more", gain > 0
        ),
        expected("several layers: rounding to nearest against floor", "better", f"{nearest:+.1f} dB on average", nearest > 0),
        expected("several layers, 8-bit integers throughout", "at least 25 dB", f"at least {integers:.1f} dB", integers >= 25),
    ]


def _row(arithmetic: str, depth: int, relu: bool, wanted: Tensor, output: Tensor, num_bytes: int) -> dict[str, Any]:
    """A line of `table.csv`: one way to compute a stack of layers, against the float network."""
    difference = wanted - output
    ratio = float(wanted.square().sum() / difference.square().sum())
    return {
        "arithmetic": arithmetic,
        "layers": depth,
        "relu": relu,
        "min_difference": float(difference.min()),
        "max_difference": float(difference.max()),
        "rms_difference": float(difference.square().mean().sqrt()),
        "sqnr_db": 10 * float(torch.log10(torch.tensor(ratio))),
        "bytes": num_bytes,
        "n": wanted.numel(),
    }
