"""All forms: `model.factory=tests/layer_forms/zoo.py:net_NAME` builds the network of one."""

import forms_between  # noqa: F401
import forms_of_calls  # noqa: F401
import forms_of_convolutions  # noqa: F401
import forms_of_norms  # noqa: F401
from layer_form import FORMS, network


def __getattr__(name: str):
    if name.startswith("net_") and name.removeprefix("net_") in FORMS:
        return lambda num_classes, in_channels: network(name.removeprefix("net_"))
    raise AttributeError(name)
