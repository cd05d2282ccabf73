"""The hashes that name trainings and tell which jobs share one; torch-free.

A training is what decides its weights: data and its content, network, recipe, seed; never how its copies are quantized, unless it
trains with its quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from qexp.base.files import hash_json
from qexp.base.user_source import source_hash
from qexp.config.data import DataSettings
from qexp.config.later import stored_values
from qexp.config.model import PRETRAINED, ModelSettings
from qexp.config.qat import IN_RECIPE, METHOD_VERSIONS, QAT_VERSION
from qexp.config.root import Config
from qexp.config.train import PRECISION_ALIASES, TrainSettings

TRAINING_FORMAT = 1  # part of every training hash; raise it when the same settings come to give other weights
# Of a variant: they never change a float training. Under `qat` the quantizers train, and all but the last two decide the weights.
DIALS = ("bits", "mode", "label", "policy", "quant", "calibrate", "correct", "float_only")
# Training keys that came after the first trainings were stored, with the value that those had: at it a key stays out of the hash.
ADDED = {"sync_bn": False}


def training_identity(config: Config) -> dict[str, object]:
    """What decides a training's weights: the part of the configuration that its hash covers.

    Left out are the dials `bits mode policy`, quant, evaluation, tracking, names, places, and the settings that do not change
    numbers (`data.root`, classes, download, workers, storage: the data's own hash stands for those).
    """
    data = stored_values(asdict(config.data), DataSettings)
    for key in ("root", "download", "workers", "storage", "classes", "label"):
        data.pop(key, None)
    model = stored_values(asdict(config.model), ModelSettings)
    if config.model.weights not in (None, PRETRAINED):
        model["weights"] = "file"  # wherever it lies; its content is hashed beside this
    train = stored_values(asdict(config.recipe), TrainSettings)
    del train["checkpoint_every_steps"]  # how often a state is stored does not change it
    for key, was in ADDED.items():
        if train[key] == was:
            del train[key]
    train["precision"] = PRECISION_ALIASES.get(config.train.precision, config.train.precision)
    identity = {
        "format": TRAINING_FORMAT,
        "seed": config.seed,
        "deterministic": config.deterministic,
        "data": data,
        "model": model,
        "train": train,
    }
    return identity | ({"qat": _qat_identity(config)} if config.qat.is_on else {})


def _qat_identity(config: Config) -> dict[str, object]:
    """What decides a quantization-aware training beside its recipe and its plan."""
    qat = {key: value for key, value in asdict(config.qat).items() if key not in IN_RECIPE}
    factory = qat.pop("factory")
    if factory is not None:  # what its file says decides, wherever it lies
        qat |= {"name": config.qat.method.name, "source": source_hash(factory)}
    version = METHOD_VERSIONS.get(config.qat.name, QAT_VERSION) if config.qat.activations else QAT_VERSION
    return {"version": version, **qat, "bits": config.bits, "calibrate": config.calibrate.identity}


def group_key(config: Config) -> str:
    """Jobs with the same key are run as one: they differ in nothing but how they quantize."""
    dials = ("label", "correct", "float_only") if config.qat.is_on else DIALS
    values = asdict(config)
    del values["data"]["label"]
    return hash_json({key: value for key, value in values.items() if key not in dials})


# What may differ between trainings of the same settings -> its name for people.
_CONTENT = {
    "data_hash": "data",
    "source_hash": "source of the network",
    "weights_hash": "weights to begin with",
    "start_hash": "float training to begin from",
}


def differences(identity: Mapping[str, object], stored: Mapping[str, object]) -> list[str]:
    """What tells a training from a stored one of the same settings, in words; empty where their settings differ.

    Args:
        identity: settings and hashes of content, as they are written beside a training.
        stored: of another one; older versions wrote no hash but that of the data.
    """
    left_out = {*_CONTENT, "split_sizes", "format"}
    ours, theirs = ({key: part for key, part in one.items() if key not in left_out} for one in (identity, stored))
    if ours != theirs:
        return []
    known = [word for key, word in _CONTENT.items() if key in stored and identity.get(key) != stored[key]]
    return known or [word for key, word in _CONTENT.items() if key in identity and key not in stored] or ["format"]


def training_hash(
    config: Config,
    data_fingerprint: str,
    weights_hash: str | None = None,
    source_hash: str | None = None,
    qat: Mapping[str, str | None] | None = None,
    num_listed: int | None = None,
) -> str:
    """The content address of a training: its identity, the data it saw, the weights it began with, an own network's source.

    Args:
        config: of the training.
        data_fingerprint: hash of the images, labels and splits.
        weights_hash: of the file that it begins from; None without one.
        source_hash: of the user's own network; None for ours.
        num_listed: classes of `data.classes`, of which the images need not show all; None without it.
        qat: of a quantization-aware training: its `plan`'s hash, and that of the float training it begins from (`start`).
    """
    parts = (("source", source_hash), ("qat", qat), ("num_listed", num_listed))
    more = {name: value for name, value in parts if value is not None}
    return hash_json({"identity": training_identity(config), "data": data_fingerprint, "weights": weights_hash, **more})
