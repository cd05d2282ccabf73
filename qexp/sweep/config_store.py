"""What Hydra is told beside the files of `conf/`: the choices of groups whose files would hold a name alone, from their rows.

A group's `_base.yaml` has its values; a choice is its name, and what a row sets otherwise. What has values of its own
(a data set, a recipe, an experiment) is a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from omegaconf import OmegaConf

from qexp.base.catalog import CUSTOM
from qexp.base.errors import UserError
from qexp.config.calibrate import RANGE_METHODS
from qexp.config.launcher import DEFAULTS
from qexp.config.model import TIMM, network_names
from qexp.config.policy import POLICIES
from qexp.config.qat import QatSettings
from qexp.config.qat_methods import QAT_METHODS
from qexp.config.root import Config
from qexp.quant.scheme_table import SCHEMES

MISSING = "???"  # Hydra's word for a value that must be given


@cache
def store_choices() -> None:
    """Fill Hydra's store of configurations, once a process."""
    from hydra.core.config_store import ConfigStore

    OmegaConf.register_new_resolver("width_of", _width_of, replace=True)
    OmegaConf.register_new_resolver("at_most", _at_most, replace=True)
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="qexp", node=dict(DEFAULTS), provider="qexp")
    for group, name, values in _choices():
        node = {"defaults": ["_base", "_self_"], "name": name, **values}
        store.store(group=group, name=name, node=node, provider="qexp")


def _width_of(scheme: object, format_name: object) -> int:
    """`bits` where nobody gives it: the only width of the scheme or its format, else 8; validation tells what is wrong."""
    if not isinstance(scheme, str) or scheme not in SCHEMES or not isinstance(format_name, str | None):
        return Config.bits
    try:
        return SCHEMES[scheme].fixed_bits(format_name) or Config.bits
    except UserError:
        return Config.bits


def _at_most(value: int, bound: object) -> int:
    """The smaller of two counts; a bound that is no count is left to validation."""
    return min(value, bound) if isinstance(bound, int) and bound >= 1 else value


def _choices() -> Iterator[tuple[str, str, Mapping[str, object]]]:
    """(group, choice, what it sets beside its name)."""
    names = {
        "model": network_names(),
        "policy": POLICIES.names,
        "quant": (*SCHEMES.names, CUSTOM),
        "calibrate": (*RANGE_METHODS.names, CUSTOM),
        "qat": ("none",),
    }
    yield from ((group, name, {}) for group, choices in names.items() for name in choices)
    yield "model", TIMM, {"name": MISSING, "library": TIMM}
    for row in QAT_METHODS.values():
        yield "qat", row.name, {} if row.mask == QatSettings.mask else {"mask": row.mask}
    yield "qat", CUSTOM, {"mask": None}  # its row's
