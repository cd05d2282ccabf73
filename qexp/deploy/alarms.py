"""What a fidelity stage fails by or parts at, in words: which layers, how far, and why where that is known."""

from __future__ import annotations

from collections.abc import Iterator

from qexp.base.text import counted
from qexp.config.export import RUNTIMES
from qexp.deploy.runtimes import saturates
from qexp.deploy.stages import LOGITS, MAX_DIFFERENT, MAX_STEPS, Stage

_MOST_NAMED = 5  # layers
MAX_DISAGREEMENT = 0.005  # share of predictions that a stage may have otherwise before it is said where it parts
_SATURATES = (
    "; this runtime's kernels saturate on this CPU, which has no VNNI: they add pairs of products of 8-bit codes in 16 bits. "
    "Weights of 7 bits stay below that (policy.rules, or bits=7), as does a CPU with VNNI, and ONNX Runtime takes exact kernels"
)


def parting(stage: Stage) -> str | None:
    """Where a stage parts from the simulation whose predictions it does not share; None where it shares enough of them.

    Args:
        stage: the integer reference or a runtime.
    """
    if 1 - stage.agreement <= MAX_DISAGREEMENT:
        return None
    text = f"{stage.name}: {100 * (1 - stage.agreement):.2f} % of the predictions are not the simulation's; "
    if not stage.n_codes:
        return text + "no codes were compared, so that no layer can be named"
    where = stage.first_difference
    text += f"codes part by more than a step first at {where}" if where else "no code is more than a step away"
    if stage.failed_layer is not None:
        return text + f", and {stage.failed_layer} is the first layer that is wrong by itself"
    text += ", though every layer by itself is right within one"
    return text + (f"; it computes otherwise where no codes are asked for ({stage.note})" if stage.note else "")


def failures(stage: Stage) -> Iterator[str]:
    """What a stage fails by: codes that are not those of integers, and layers that did not run in integers."""
    if stage.failed_layer is not None:
        steps, share = f"at most {stage.layer_steps} steps from integers, 1 is allowed", stage.differ_pct or 0.0
        if (stage.layer_steps or 0) <= MAX_STEPS and stage.failed_layer != LOGITS:
            steps = f"at most {share:.2g} % of the codes are not those of integers, {100 * MAX_DIFFERENT:g} % are allowed"
        saturated = stage.name in RUNTIMES and (stage.layer_steps or 0) > MAX_STEPS and saturates(stage.name)
        yield f"{stage.name}, first at {stage.failed_layer}: {steps}" + (_SATURATES if saturated else "")
    if stage.float_layers:
        names = [*stage.float_layers[:_MOST_NAMED], *["..."] * (len(stage.float_layers) > _MOST_NAMED)]
        ran = f"{stage.num_integer} of {counted(stage.num_planned or 0, 'planned layer')} ran in integers"
        yield f"{stage.name}: {ran}, {stage.integer_macs_pct or 0.0:.1f} % of their MACs; in float: {', '.join(names)}"
