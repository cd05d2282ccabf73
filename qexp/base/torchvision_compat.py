"""The one function that imports torchvision, beside any build of torch.

PyPI's torchvision wheel is built beside a CUDA torch. Beside a CPU-only torch its extension does not load, and the import
then fails at `operator torchvision::nms does not exist`, data sets and models included: `torchvision/_meta_registrations.py`
registers fake kernels for operators whose schemas the extension would have defined. We define the two missing schemas, and
only where the extension is absent; detection ops then raise when called, which qexp never does.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.library import Library

_SCHEMAS = (
    ("nms", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ("qnms", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
)
_DEFINED: list[Library] = []  # keeps the definitions alive as long as the process


@cache
def torchvision() -> ModuleType:
    """Import torchvision beside any torch build and return it."""
    import torch

    if importlib.util.find_spec("torchvision") is None:
        raise ImportError("torchvision is not installed: pip install torchvision")
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return torchvision
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _DEFINED.append(library)
    import torchvision

    return torchvision
