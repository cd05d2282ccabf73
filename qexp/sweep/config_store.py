"""What Hydra is told beside the files of `conf/`: the choices of groups whose files would hold a name alone, from their rows.

A group's `_base.yaml` has its values; a choice is its name, and what a row sets otherwise. What has values of its own
(a data set, a recipe, an experiment) is a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from qexp.base.catalog import CUSTOM
from qexp.config.calibrate import RANGE_METHODS
from qexp.config.launcher import DEFAULTS
from qexp.config.model import TIMM, network_names
from qexp.config.policy import POLICIES
from qexp.config.qat import QatSettings
from qexp.config.qat_methods import QAT_METHODS
from qexp.quant.scheme_table import SCHEMES

MISSING = "???"  # Hydra's word for a value that must be given


@cache
def store_choices() -> None:
    """Fill Hydra's store of configurations, once a process."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="qexp", node=dict(DEFAULTS), provider="qexp")
    for group, name, values in _choices():
        node = {"defaults": ["_base", "_self_"], "name": name, **values}
        store.store(group=group, name=name, node=node, provider="qexp")


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
