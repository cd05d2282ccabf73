"""Labels that were typed, `label=TEXT` and `data.label=TEXT`, held against each other before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from qexp.base.errors import UserError, UserErrors
from qexp.base.label import draw_word
from qexp.config.root import Config
from qexp.experiment.job import Prepared


def check_labels(prepared: Sequence[Prepared]) -> None:
    """Refuse a typed label that stands for several variants of a command; draws, seeds and trainings repeat one variant.

    Args:
        prepared: all merged jobs of the command.

    Raises:
        UserErrors: all such labels, each with what it would name.
    """
    meant: dict[str, dict[str, None]] = {}
    typed = set()
    for variant in (variant for one in prepared for variant in one.variants):
        bare = variant.named.without([draw_word(variant.draw), variant.key[:4]])
        meant.setdefault(bare.text, {})[bare.generated.text] = None
        typed |= {bare.text} if bare.given else set()
    errors = [
        UserError(
            "label",
            text,
            allowed="the name of one variant",
            remedy=f"It would name {len(names)}, {' and '.join(names)}: give each of them a label of its own.",
        )
        for text, names in meant.items()
        if text in typed and len(names) > 1
    ]
    if errors:
        raise UserErrors(errors)


def check_data_labels(configs: Sequence[Config]) -> None:
    """Refuse several names for the data set of one training.

    Args:
        configs: of jobs that share it.

    Raises:
        UserError: there are several.
    """
    first, *others = dict.fromkeys(config.data.label for config in configs)
    if others:
        given, allowed = (others[0], first or "null") if others[0] is not None else (first, "null")
        remedy = "Jobs that share a training share its data set: give one name for it."
        raise UserError("data.label", given, allowed=allowed, remedy=remedy)
