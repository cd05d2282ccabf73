"""What a job's data and network must have: images in the splits asked for, none both learned from and scored, batch norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.base import dist
from qexp.base.catalog import is_own
from qexp.base.errors import UserError
from qexp.base.text import by_reason
from qexp.config.metrics import asked, prec5_of_few
from qexp.config.model import PRETRAINED
from qexp.config.qat import QatSettings
from qexp.config.root import Config
from qexp.engine.metrics import check_metric
from qexp.experiment.variants import Variant
from qexp.models.pretrained import pretrained_classes
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import evaluating
from qexp.reporting.frames.summary import columns_of_others

if TYPE_CHECKING:
    from qexp.data.bundle import DataBundle

SHARED = 0.005  # published sets hold a copy or two; more images that are both learned from, or chosen on, and scored count
MOSTLY = 0.5  # of the images that are scored: where more are training images, no number would be of new ones


def check_evaluation(config: Config, bundle: DataBundle) -> None:
    """Raise UserError where `evaluate` asks for images that the data set does not have."""
    split, wanted = config.evaluate.split, config.evaluate.num_images
    size = _size("evaluate.split", split, bundle, _set_aside(split))
    if wanted is not None and wanted > size:
        raise UserError("evaluate.num_images", wanted, allowed=f"at most {size}, the size of the {split} split")
    if config.evaluate.until is not None and dist.world_size() > 1:
        remedy = "Whether a batch is scored hangs on those before it, and ranks would wait for one another."
        raise UserError("evaluate.until", config.evaluate.until, allowed="null with several processes", remedy=remedy)


def check_pretrained(config: Config, bundle: DataBundle) -> None:
    """Raise UserError where a pretrained network would be evaluated with a classifier that nobody trained."""
    if config.checkpoint != PRETRAINED:
        return
    count, wanted = pretrained_classes(config.model), config.model.num_classes or bundle.num_classes
    if count != wanted:
        remedy = f"model.num_classes={count} keeps its classifier; data.classes=FILE lists its classes, so that labels fit."
        raise UserError("model.pretrained", True, allowed=f"a network for {wanted} classes, not {count}", remedy=remedy)


def check_training(config: Config, bundle: DataBundle) -> None:
    """Raise UserError where a training sees no image, one class alone, not all that are scored, or most images that are."""
    if config.checkpoint is not None:
        return
    if config.recipe.randaugment is not None and bundle.image_shape[0] not in (1, 3):
        remedy = f"Images of {bundle.image_shape[0]} channels are neither grey nor RGB."
        raise UserError("train.randaugment", config.recipe.randaugment, allowed="null here", remedy=remedy)
    (key, value), scored = config.data.source, config.evaluate.split
    if bundle.split_sizes["train"] == 0:
        remedy = "The other splits take all, or there is no train/: nothing is left to train on."
        raise UserError(key, value, allowed="images to train on", remedy=remedy)
    if len(bundle.labels("train").unique()) < 2:
        remedy = "Of one class every prediction is right."
        raise UserError(key, value, allowed="training images of at least 2 classes", remedy=remedy)
    unseen = _unseen(bundle, scored)
    if unseen and config.data.num_train is None:
        remedy = f"No training image is of {unseen} that the {scored} split has."
        raise UserError(key, value, allowed="training images of all classes that are scored", remedy=remedy)
    count, size = bundle.shared(scored, "train") if scored != "train" else (0, 0)
    if count > MOSTLY * size:
        remedy = f"{count} of {size} images of the {scored} split are training images, byte for byte."
        raise UserError(key, value, allowed=f"a {scored} split of other images than train", remedy=remedy)


def data_alarms(config: Config, bundle: DataBundle) -> list[str]:
    """What makes every number of a job suspicious, whatever the copy: images that are trained too, classes that are not."""
    scored, alarms = config.evaluate.split, []
    if scored != "train":
        count, size = bundle.shared(scored, "train")
        if count > SHARED * size:
            alarms.append(f"{count} of {size} images of the {scored} split are in the train split too, byte for byte")
    if config.checkpoint is None and (unseen := _unseen(bundle, scored)):
        alarms.append(f"no training image is of {unseen} that are scored")
    return alarms


def data_notes(config: Config, bundle: DataBundle, class_count: int) -> list[str]:
    """What a reader should know of the data beside its numbers.

    Args:
        config: of the job.
        bundle: its data.
        class_count: width of the logits.
    """
    notes, scored = [*prec5_of_few(class_count)], config.evaluate.split
    if config.checkpoint is None and (unscored := _unseen(bundle, "train", scored)):
        notes.append(f"no image of the {scored} split is of {unscored} that are trained")
    return notes


def _unseen(bundle: DataBundle, split: str, by: str = "train") -> str:
    """The classes of a split that another lacks, in words; empty where there are none."""
    numbers = sorted({*bundle.labels(split).tolist()} - {*bundle.labels(by).tolist()})
    if not numbers:
        return ""
    names = ", ".join(bundle.class_names[number] for number in numbers[:3]) + (", ..." if len(numbers) > 3 else "")
    return f"{len(numbers)} of {bundle.num_classes} classes ({names})"


def check_metrics(config: Config, class_count: int) -> None:
    """Raise UserError where a metric of the user's own does not give what its row says, or is called as something else is.

    Args:
        config: of the job.
        class_count: width of the logits.
    """
    for text, row in zip(config.evaluate.metrics, asked(config.evaluate.metrics), strict=True):
        if is_own(text):
            if row.name in columns_of_others():
                raise UserError("evaluate.metrics", text, allowed="a name of its own", remedy=f"Tables have another {row.name}.")
            check_metric(row, class_count=class_count)


def check_calibration(variant: Variant, bundle: DataBundle) -> None:
    """Raise UserError where a variant needs calibration images, or batch norms, that are not there."""
    settings, places = variant.config.calibrate, [row.info for row in variant.plan.activations if row.spec is not None]
    static = variant.calibration is None and any(not spec.dynamic for spec in variant.plan.quantized_activations.values())
    if not variant.is_built or not (static or variant.config.correct.needs_images or variant.config.qat.reestimate_bn):
        return
    if static and settings.method.reads == "batch_norm" and all(info.norm is None for info in places):
        remedy = "Of the activations that are quantized none stands behind a batch norm."
        raise UserError("calibrate", settings.method.name, allowed="a method that reads images", remedy=remedy)
    size = _size("calibrate.split", settings.split, bundle, _set_aside(settings.split))
    if settings.split != variant.config.evaluate.split:  # the same one is asked for by name, and stamped on every number
        _check_apart("calibrate.split", settings.split, variant.config, bundle)
    if settings.num_images is not None and settings.num_images > size:
        allowed = f"at most {size}, the size of the {settings.split} split"
        raise UserError("calibrate.num_images", settings.num_images, allowed=allowed)
    if settings.draw and settings.num_images in (None, size):
        allowed = f"0 where all {size} images of the {settings.split} split calibrate"
        remedy = f"Draws are parts of the split: give calibrate.num_images=N below {size}."
        raise UserError("calibrate.draw", settings.draw, allowed=allowed, remedy=remedy)


def check_batch_norm(config: Config, model: nn.Module) -> None:
    """Raise UserError where `qat` does something to the batch norms of a network that has none for it."""
    qat, remedy = config.qat, "The network has no batch norm that keeps running statistics."
    offs = {"batch_norm": "unfolded", "freeze_bn_epoch": "null", "reestimate_bn": "false"}
    asked = [key for key in offs if getattr(qat, key) != getattr(QatSettings, key)]
    if not qat.is_on or not asked:
        return
    able = any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())
    if able and qat.batch_norm == "folded":
        with evaluating(model):
            folded = fold_batch_norm(model)
        able, why = bool(folded.layers), "; ".join(by_reason(folded.notes, most=3))
        remedy = f"None of its batch norms can be folded: {why}."
    if not able:
        key = asked[0]
        raise UserError(f"qat.{key}", getattr(qat, key), allowed=f"{offs[key]} for this network", remedy=remedy)


def check_analysis_images(config: Config, bundle: DataBundle) -> None:
    """Raise UserError where `analyze` asks for images that the data set does not have."""
    split, wanted = config.analyze.split, config.analyze.num_images
    remedy = f"Set data.num_{split}=N to set images aside." if split != "train" else ""
    size = _size("analyze.split", split, bundle, remedy)
    if wanted is not None and wanted > size:
        allowed = f"at most {size}, the size of the {split} split"
        raise UserError("analyze.num_images", wanted, allowed=allowed, remedy="It is evaluate.num_images unless it is given.")


def check_allocation_images(config: Config, bundle: DataBundle) -> None:
    """Raise UserError where widths would be chosen on the images that they are tested on."""
    chosen, tested = config.analyze.split, config.evaluate.split
    if chosen == tested:
        remedy = "Widths are chosen on one and tested on the other."
        raise UserError("evaluate.split", tested, allowed="another split than analyze.split", remedy=remedy)
    if bundle.split_sizes.get(chosen, 0):
        _check_apart("analyze.split", chosen, config, bundle)


def _size(key: str, split: str, bundle: DataBundle, remedy: str) -> int:
    size = bundle.split_sizes.get(split, 0)
    if size == 0:
        raise UserError(key, split, allowed="a split that holds images", remedy=remedy)
    return size


def _set_aside(split: str) -> str:
    return f"Set data.num_{split}=N." if split in ("calib", "select") else ""


def _check_apart(key: str, split: str, config: Config, bundle: DataBundle) -> None:
    """Raise UserError where images of a split are scored too; published sets hold a copy or two, and those pass."""
    scored = config.evaluate.split
    count, size = bundle.shared(split, scored)
    if count > SHARED * size:
        remedy = f"{count} of its {size} images are in the {scored} split too, byte for byte. Take them out of one of the two."
        raise UserError(key, split, allowed=f"images that evaluate.split={scored} does not score", remedy=remedy)
