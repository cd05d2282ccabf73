"""In words: does an exported network compute in its runtimes what was simulated?"""

from __future__ import annotations

from collections.abc import Iterator

from qexp.base.text import counted
from qexp.tracking.row_types import ExportRow, StageRow


def agreement_sentences(export: ExportRow) -> Iterator[str]:
    """A sentence for each runtime.

    Args:
        export: row of the journal.
    """
    for stage in export["rungs"]:
        if stage["version"]:  # of fp32, the simulation and the integers there is none
            yield f"{stage['name']} {_judged(stage)}: {_predictions(stage)}{_layers(stage)}."


def _judged(stage: StageRow) -> str:
    if stage["passed"] is None:
        return "was compared by its predictions alone"
    if stage["passed"]:
        return "agrees"
    return f"does not agree, first at {stage['failed_layer']}"


def _predictions(stage: StageRow) -> str:
    equal = round(stage["agreement"] * stage["n"])
    return f"{equal} of {counted(stage['n'], 'prediction')} equal the simulation's"


def _layers(stage: StageRow) -> str:
    text = ", every layer within one step of integers" if stage["passed"] else ""
    planned, done = stage.get("num_planned"), stage.get("num_integer")
    return text + (f", {done} of {counted(planned, 'layer')} computed in integers" if planned and done is not None else "")
