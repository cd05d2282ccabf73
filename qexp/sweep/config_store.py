"""What Hydra is told beside the files of `conf/`: the settings of the launcher."""

from __future__ import annotations

from functools import cache

from qexp.config.launcher import DEFAULTS


@cache
def store_choices() -> None:
    """Fill Hydra's store of configurations, once a process."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="hydra/launcher", name="qexp", node=dict(DEFAULTS), provider="qexp")
