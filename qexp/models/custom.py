"""A researcher's own network."""

from __future__ import annotations

from torch import nn

from qexp.base.errors import UserError
from qexp.base.user_code import call_factory

_KEY = "model.factory"


def build_custom(factory: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Call the user's function with `num_classes` and `in_channels`, as far as it takes them.

    Args:
        factory: `package.module:function` or `path/file.py:function`; a class will do.
        num_classes: outputs wanted.
        in_channels: channels of the images.

    Raises:
        UserError: nothing to import, or what comes back is no `torch.nn.Module`.
    """
    model = call_factory(_KEY, factory, offered={"num_classes": num_classes, "in_channels": in_channels})
    if not isinstance(model, nn.Module):
        raise UserError(
            _KEY, factory, allowed="a function that returns a torch.nn.Module", remedy=f"It returned {_type_name(model)}."
        )
    return model


def _type_name(value: object) -> str:
    """The type of what came back, with its article."""
    kind = type(value).__name__
    return "None; is its return missing?" if value is None else f"{'an' if kind[0].lower() in 'aeio' else 'a'} {kind}"
