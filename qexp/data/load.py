"""Settings in, a `DataBundle` out; and the sets that a process holds in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import cast, get_args

from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.config.data import DataSettings
from qexp.data.bundle import DataBundle, ImageStore
from qexp.data.checks import check_source
from qexp.data.splits import Part, Split, cut_splits

IN_MEMORY = 2  # data sets that stay loaded: the one in use, and the one before it


def load_store(settings: DataSettings) -> ImageStore:
    """The images and labels of a data set, by the loader that its row names, looked at and resized.

    Raises:
        UserError: the set is absent or corrupt, or `check_source` refuses it.
    """
    load = cast("Callable[[DataSettings], ImageStore]", settings.info.load())
    store = load(settings)
    check_source(store, settings)
    return store.resized(settings.image_size)


def load_data(settings: DataSettings) -> DataBundle:
    """Decode a data set (or list its files, to be decoded as they are asked for), cut its splits and make it ready for batches.

    Raises:
        UserError: the set is absent or corrupt, its splits take more than there is, or mean and std do not fit its channels. That
            one of many files is corrupt shows when it is decoded.
    """
    store = load_store(settings)
    parts: tuple[Part, ...] = get_args(Part)
    splits = cut_splits({part: store.labels(part) for part in parts if store.num_images(part) is not None}, settings)
    if settings.mean is None or settings.std is None:
        if len(splits.rows[Split.TRAIN]) == 0 and not store.streamed:
            raise UserError(
                "data.mean",
                None,
                allowed="a list, or [] for that of the network or of the set, as there is no image to measure it on",
            )
        rows = splits.rows[Split.TRAIN]
        cut = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
        mean, std = store.once(f"statistics {cut}", lambda: store.channel_statistics(rows))
    else:
        channels = store.image_shape[0]
        mean, std = (_per_channel(key, getattr(settings, key), channels) for key in ("mean", "std"))
    return DataBundle(store, splits, mean=mean, std=std, augment=settings.augment)


def _per_channel(key: str, values: list[float], channels: int) -> list[float]:
    """`values` once per channel; a single one serves all."""
    if len(values) not in (1, channels):
        raise UserError(f"data.{key}", values, allowed=f"a list of {channels} numbers, one per channel, or of one for all")
    return values * channels if len(values) == 1 else values


class DataSets:
    """The data sets of a process, each loaded once for all jobs that share it; the two last used stay in memory."""

    def __init__(self) -> None:
        self._bundles: dict[str, DataBundle] = {}

    def of(self, settings: DataSettings) -> DataBundle:
        """The data set of these settings; loaded now if it is not in memory.

        Raises:
            UserError: as `load_data`.
        """
        key = _key(settings)
        if key not in self._bundles:
            while len(self._bundles) >= IN_MEMORY:
                del self._bundles[next(iter(self._bundles))]
            self._bundles[key] = load_data(settings)
        return self._bundles[key]

    def __contains__(self, settings: DataSettings) -> bool:
        return _key(settings) in self._bundles


def _key(settings: DataSettings) -> str:
    return hash_json(asdict(replace(settings, label=None)))
