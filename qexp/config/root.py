"""The root configuration, composed of the settings of each group; torch-free.

YAML holds values, Hydra composes them, and `qexp.config.validate` makes a `Config` of the resolved values, once. Ranges, and what
belongs together, are checked in each settings' `__post_init__`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import ConfigDict

from qexp.base.checks import Bits, Seed, check_bounds
from qexp.base.errors import UserError
from qexp.base.label import check_label
from qexp.config.analyze import AnalyzeSettings, Task
from qexp.config.calibrate import CalibrateSettings
from qexp.config.correct import CorrectSettings
from qexp.config.data import DataSettings
from qexp.config.export import ExportSettings
from qexp.config.later import later
from qexp.config.model import PRETRAINED, ModelSettings
from qexp.config.policy import PolicySettings
from qexp.config.qat import QatSettings
from qexp.config.qat_methods import QAT_METHODS
from qexp.config.quant import QuantSettings
from qexp.config.tracking import TrackingSettings
from qexp.config.train import EvaluateSettings, TrainSettings, TrajectorySettings
from qexp.quant.scheme_table import SchemeInfo

NAME_BYTES = 200  # file systems take 255, with what qexp puts before and behind it
Mode = Literal["int", "float", "half"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """One job: a training (or a checkpoint) and one way to quantize it.

    Args:
        name: experiment; names the MLflow experiment and `results/<name>/`.
        data: images and their splits.
        model: the network.
        train: recipe of the training.
        seed: of initialization, order and augmentation.
        deterministic: bit-reproducible kernels, at some cost in speed.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        bits: width of quantized weights, 1 to 16.
        mode: `int`, `float` (the control) or `half`.
        label: what tables, figures, the console and MLflow call the quantized copy, a line of at most 60 characters; None is what
            its settings say.
        policy: which tensor gets which width.
        quant: scheme and grid of weights and activations.
        calibrate: how clipping ranges are chosen.
        correct: corrections of a quantized network.
        qat: training with quantization in the loop.
        evaluate: which images are scored.
        trajectory: which epochs stay on disk.
        tracking: where MLflow's runs go.
        export: of `qexp.export`.
        analyze: of `qexp.analyze`, tasks `sensitivity`, `allocate` and `shrink`.
        checkpoint: state-dict file, for `qexp.evaluate`, `qexp.analyze` and `qexp.export` only.
        float_only: evaluate the float network alone, as a control of other trainings.
        task: of `qexp.analyze`: `profile` measures every quantized tensor, `sensitivity` quantizes one layer at a time,
            `allocate` chooses bits per layer, `shrink` looks for the smallest network that loses little.
        image: a file whose classes `profile` scores too.
        cases: of a sweep: sets of overrides that are run one after the other, where a product of values would not do.
        plan: how much of it is printed: `short`, a line per variant, or `full`, with the table of its tensors; None: `full` where
            `plan_only` asks for nothing else. `results/<name>/plan.csv` has the tensors in any case.
        plan_only: print plan and estimates, and stop.
        quiet: print results (paths) and errors alone; `--json` prints an object a line instead.
        fresh: train again although stored.
        runs_dir: where trainings, journal and MLflow's store lie.
        results_dir: where reports go.
        draw_figures: beside the tables and the page of a report, and the tables of an analysis.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    seed: Seed = 0
    deterministic: bool = False
    device: str = "auto"
    bits: Bits = 8
    mode: Mode = "int"
    label: str | None = later(None)
    policy: PolicySettings = field(default_factory=PolicySettings)
    quant: QuantSettings = field(default_factory=QuantSettings)
    calibrate: CalibrateSettings = field(default_factory=CalibrateSettings)
    correct: CorrectSettings = field(default_factory=CorrectSettings)
    qat: QatSettings = field(default_factory=QatSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    trajectory: TrajectorySettings = field(default_factory=TrajectorySettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    analyze: AnalyzeSettings = field(default_factory=AnalyzeSettings)
    checkpoint: str | None = None
    float_only: bool = False
    task: Task | None = None
    image: str | None = None
    cases: list[list[str]] | None = None
    plan: Literal["short", "full"] | None = later(None)
    plan_only: bool = False
    quiet: bool = later(False)
    fresh: bool = False
    runs_dir: str = "runs"
    results_dir: str = "results"
    draw_figures: bool = later(True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_bounds(self, "")
        check_label("label", self.label)
        if not self.model.library_preprocessing:
            object.__setattr__(self, "data", self.data.resolved(self.model.preprocessing))
        device, _, index = self.device.partition(":")
        if device not in ("auto", "cpu", "cuda") or (index and (device != "cuda" or not index.isdigit())):
            raise UserError("device", self.device, allowed="auto, cpu, cuda or cuda:N")
        if not self.name or not all(char.isalnum() or char in "-_." for char in self.name) or self.name[0] == ".":
            raise UserError("name", self.name, allowed="letters, digits, '-', '_' and '.', as it names a folder")
        if len(self.name.encode()) > NAME_BYTES:
            raise UserError("name", f"{self.name[:20]}...", allowed=f"at most {NAME_BYTES} bytes, as it names files")
        scaled = [f"correct.{row.switch}" for row in self.correct.asked if row.scales_channels]
        if scaled and not self.calibrate.method.scaled_channels:
            remedy = "Scaled channels have other ranges than batch norm tells."
            name = self.calibrate.method.name
            raise UserError("calibrate", name, allowed=f"another method with {' and '.join(scaled)}", remedy=remedy)
        self._check_chosen_codes()
        self._check_bf16()
        if self.evaluate.engine == "compiled" and self.mode == "half" and not self.float_only:
            remedy = (
                "Every result is rounded to fp16 there, and a compiler joins operations: evaluate.engine=auto runs it as it is."
            )
            raise UserError("mode", "half", allowed="int or float with evaluate.engine=compiled", remedy=remedy)
        if self.model.weights_key is not None and {self.checkpoint, self.model.weights} <= {None, PRETRAINED}:
            remedy = "It names an entry of the file of checkpoint or model.weights."
            raise UserError("model.weights_key", self.model.weights_key, allowed="null without a file", remedy=remedy)
        if self.evaluate.across is not None and self.data.info.preprocessing is None:
            remedy = "Its images are no files that could be prepared in another way."
            raise UserError("evaluate.across", self.evaluate.across, allowed=f"null for data={self.data.name}", remedy=remedy)
        if self.qat.is_on:
            self._check_qat()
        if self.quantizes_activations and not self.qat.is_on and self.calibrate.file is None:
            activation = self.quant.activation
            if not activation.dynamic:
                self.calibrate.method.check_grid(activation.row)
        if self.calibrate.clips_weights and self.mode != "half" and not self.float_only:
            self._check_clipped(self.grids.row)

    def _check_chosen_codes(self) -> None:
        """Refuse a rounding where a correction chooses the codes: variants with equal weights would be counted as several."""
        choosing = [f"correct.{row.switch}=true" for row in self.correct.asked if row.chooses_codes]
        weight, default = self.quant.weight, QuantSettings().weight.rounding
        if choosing and weight.rounding != default:
            remedy = "It chooses the code of every weight itself, beginning from the nearest: give a job one of the two."
            raise UserError("quant.weight.rounding", weight.rounding, allowed=f"{default} with {choosing[0]}", remedy=remedy)

    def _check_clipped(self, scheme: SchemeInfo) -> None:
        """Refuse ranges of weights that their scheme cannot have."""
        if not scheme.takes_range(self.quant.weight.scaled):
            remedy = f"quant={scheme.name} takes its levels from the values, and has no range to clip."
            if scheme.clipped:
                remedy = "quant.weight.scaled=false takes the values as they are."
            raise UserError("calibrate.weights", self.calibrate.weights, allowed=CalibrateSettings.weights, remedy=remedy)
        self.calibrate.weight_method.check_grid(scheme, "calibrate.weights")

    def _check_qat(self) -> None:
        """Refuse what a quantization-aware training does not read, and what it lacks."""
        where = f"with qat={self.qat.name}"
        if self.mode != "int":
            remedy = "Its control is the float training: qat=none float_only=true."
            raise UserError("mode", self.mode, allowed=f"int {where}", remedy=remedy)
        if self.correct.asked:
            remedy = "Corrections follow training; qat.batch_norm=folded and qat.reestimate_bn=true belong to it."
            raise UserError("correct", ", ".join(self.correct.words.values()), allowed=f"none {where}", remedy=remedy)
        for key in ("weights", "file") if self.qat.first_step == "paper" else ("file",):
            if getattr(self.calibrate, key) != getattr(CalibrateSettings, key):
                able = ", ".join(QAT_METHODS.names_where(lambda row: "calibrated" in row.first_steps))
                remedy = (
                    f"Weights begin as the method says, activations by calibrate=METHOD; {able} has qat.first_step=calibrated."
                )
                raise UserError(f"calibrate.{key}", getattr(self.calibrate, key), allowed=f"its default {where}", remedy=remedy)
        if self.float_only:
            raise UserError("float_only", True, allowed="false with qat", remedy="Its quantizers are part of the training.")
        if self.qat.init == "checkpoint" and self.model.weights is None:
            remedy = "Give model.weights=FILE, or qat.init=training."
            raise UserError("qat.init", "checkpoint", allowed="a network with model.weights", remedy=remedy)
        if self.qat.init == "none" and self.model.weights is not None:
            remedy = "qat.init=checkpoint begins from model.weights."
            raise UserError("qat.init", "none", allowed="random weights: model.weights=null", remedy=remedy)
        epochs, frozen = self.recipe.epochs, self.qat.freeze_bn_epoch
        if frozen is not None and frozen > epochs:
            raise UserError("qat.freeze_bn_epoch", frozen, allowed=f"at most {epochs}, the epochs of this training")
        _ = self.grids  # which checks what it puts together

    @property
    def recipe(self) -> TrainSettings:
        """The recipe of this job's training: `train`, or what `qat` makes of it."""
        return self.qat.recipe(self.train)

    @property
    def grids(self) -> QuantSettings:
        """The quantizers of weights and activations: `quant`, or what `qat` makes of it."""
        return self.qat.quantizers(self.quant, self.bits)

    @property
    def evaluates_channels_last(self) -> bool:
        """Memory format of evaluations: as in training; channels-last in bf16, of which a CPU so makes five times as many."""
        return self.train.channels_last or self.evaluate.precision == "bf16"

    def _check_bf16(self) -> None:
        """Refuse `evaluate.precision=bf16` where the evaluation simulates another arithmetic, which it would replace."""
        if self.evaluate.precision == "fp32" or self.float_only:
            return
        simulated = (
            "results rounded to fp16" if self.mode == "half" else "codes of activations" if self.quantizes_activations else ""
        )
        if simulated:
            remedy = f"The copy simulates {simulated}, which bf16 is too coarse for."
            raise UserError("evaluate.precision", "bf16", allowed="fp32 with mode=half or quantized activations", remedy=remedy)

    @property
    def quantizes_activations(self) -> bool:
        """True where activations get a width."""
        return self.mode != "half" and (
            self.grids.activation.bits is not None or any(rule.role == "activation" for rule in self.policy.own_rules)
        )

    @property
    def float_start(self) -> Config | None:
        """The float training that a quantization-aware one begins from; None where it begins otherwise."""
        if not self.qat.is_on or self.qat.init != "training":
            return None
        return replace(self, qat=QatSettings(), float_only=True, fresh=False)
