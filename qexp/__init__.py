"""qexp: what does quantizing this CNN cost, and can the answer be trusted?

The names of `__all__` are the public Python API. Each is imported when it is first asked for: importing qexp brings neither torch
nor pandas. The commands are modules of their own, `python -m qexp.VERB`, and `python -m qexp` lists them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qexp.base.errors import UserError as UserError
    from qexp.base.errors import UserErrors as UserErrors
    from qexp.base.types import Plan as Plan
    from qexp.base.types import QuantSpec as QuantSpec
    from qexp.config.root import Config as Config
    from qexp.config.validate import validate as validate
    from qexp.data.load import load_data as load_data
    from qexp.engine.fit import fit as fit
    from qexp.engine.trajectory import TrajectoryStore as TrajectoryStore
    from qexp.models.build import build_model as build_model
    from qexp.models.weights import load_weights as load_weights
    from qexp.nn.inventory import inventory as inventory
    from qexp.nn.shadow import Shadow as Shadow
    from qexp.policy.plan import make_plan as make_plan
    from qexp.quant.encoding import decode as decode
    from qexp.quant.encoding import encode as encode
    from qexp.quant.schemes import quantize_ as quantize_
    from qexp.reporting.notebook import load as load
    from qexp.reporting.report import write_report as write_report
    from qexp.stats.paired import compare as compare
    from qexp.tracking.record import Record as Record

_MODULES = {
    "Config": "qexp.config.root",
    "Plan": "qexp.base.types",
    "QuantSpec": "qexp.base.types",
    "Record": "qexp.tracking.record",
    "Shadow": "qexp.nn.shadow",
    "TrajectoryStore": "qexp.engine.trajectory",
    "UserError": "qexp.base.errors",
    "UserErrors": "qexp.base.errors",
    "build_model": "qexp.models.build",
    "compare": "qexp.stats.paired",
    "decode": "qexp.quant.encoding",
    "encode": "qexp.quant.encoding",
    "fit": "qexp.engine.fit",
    "inventory": "qexp.nn.inventory",
    "load": "qexp.reporting.notebook",
    "load_data": "qexp.data.load",
    "load_weights": "qexp.models.weights",
    "make_plan": "qexp.policy.plan",
    "quantize_": "qexp.quant.schemes",
    "validate": "qexp.config.validate",
    "write_report": "qexp.reporting.report",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """A public name, imported from its module now."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
