"""Typed settings that nobody reads are refused; those that one job of a sweep reads are not."""

from functools import cache

import pytest
import yaml

from qexp.base.errors import UserErrors
from qexp.config.correct import CORRECTIONS
from qexp.config.later import _groups
from qexp.config.qat_methods import QAT_METHODS
from qexp.config.read_where import marks_of
from qexp.config.root import Config
from qexp.config.validate import all_keys, validate
from qexp.experiment.identity import training_hash, training_identity
from qexp.sweep.arguments import typed_settings
from qexp.sweep.check import check
from qexp.sweep.check_read import _RULES, _TASKS, _VERBS, as_read, check_read

A8 = "quant.activation.bits=8"


@pytest.fixture(scope="module")
def asked(compose, job):
    """Checks what is typed for one job, or for several; Hydra composes each command once."""
    composed = cache(lambda verb: compose("data=digits", verb=verb))

    def config(verb, words):
        changes = {key: yaml.safe_load(value) for key, value in typed_settings(words).items()}
        groups = {key for key in changes if isinstance(composed(verb).get(key), dict)}
        return validate(job({f"{key}.name" if key in groups else key: value for key, value in changes.items()}, composed(verb)))

    def asked(typed, *jobs, verb="train"):
        configs = [config(verb, words) for words in jobs or [typed.split()]]
        check_read(configs, typed_settings(typed.split()), verb)

    return asked


UNREAD = [
    # what other settings make idle
    ("train.gamma=0.5", "it is read with train.schedule=step"),
    ("train.milestones=[3]", "it is read with train.schedule=step"),
    ("quant.weight.group_size=32", "it is read with quant.weight.granularity=per_group"),
    ("quant.weight.rounding_seed=1", "it is read with quant.weight.rounding=stochastic"),
    ("tracking.enabled=false tracking.uri=x", "it is read with tracking.enabled=true"),
    ("qat=lsq qat.distill_temperature=2", "it is read with qat.distill_weight=NUMBER"),
    # what rows say
    ("quant.weight.pow2_round=nearest", "quant=pow2_scale would, not quant=linear"),
    ("quant=symmetric quant.weight.pin_zero=true", "quant=lut_quantile or lut_kmeans would"),
    ("quant.weight.arithmetic=divide", "quant=linear is no affine grid"),
    ("quant.weight.format=e2m1", "quant=minifloat would, not quant=linear"),
    ("quant=mxfp4 quant.weight.granularity=per_channel", "quant=mxfp4 has blocks of 32 with a scale each"),
    ("quant.activation.scheme=mxfp4 quant.activation.granularity=per_tensor", "quant.activation.scheme=mxfp4 has blocks of"),
    ("quant.activation.scheme=nvfp4 quant.activation.block_size=16", "quant.activation.scheme=bfp would, not nvfp4"),
    ("quant.activation.scheme=nvfp4 calibrate=mse", "quant.activation.scheme=nvfp4 takes its scales from the values"),
    ("policy.conv_bits=4", "policy=conv_linear would, not policy=uniform"),
    ("correct.adaround_lr=0.1", "correct.adaround is off"),
    ("correct.feedback_act_order=true", "correct.gptq and correct.gpfq and correct.qronos are off"),
    ("correct.gpfq=true correct.feedback_damping=0.1", "correct.gptq and correct.qronos are off"),
    ("qat.lr=0.01", "nothing trains with quantization here: name a method, qat=ste or"),
    ("+qat.mask=rounded", "nothing trains with quantization here"),
    ("qat=ste qat.scale_decay=0.1", "qat=ste learns nothing that it decays"),
    ("qat=lsq qat.momentum=0.5", "qat=lsq observes no range"),
    ("data.root=x", "data=digits does not"),
    ("data.workers=4", "data=digits does not"),
    ("evaluate.memory_mib=5", "data=digits is not streamed"),
    # what is calibrated
    ("calibrate=mse", "activations stay float"),
    ("calibrate.file=x", "it holds ranges of activations, and no job has static ones"),
    ("calibrate.num_images=5", "no range and no correction needs images"),
    ("calibrate.norm=2.4", "calibrate.weights=minmax does not"),
    (f"{A8} calibrate=kl calibrate.norm=2.4", "calibrate=kl and calibrate.weights=minmax do not"),
    (f"{A8} calibrate.file=x calibrate=mse", "calibrate.file brings the ranges"),
    (f"{A8} quant.activation.dynamic=true calibrate=mse", "with quant.activation.dynamic=true each batch has its own range"),
    ("qat=lsq calibrate=mse", "qat=lsq says itself what it begins with"),
    ("quant.activation.scheme=symmetric", "activations stay float"),
    # what is cast, is not rounded, or has another width
    ("mode=half correct.fold_bn=true", "mode=half casts every tensor"),
    ("mode=float quant.weight.rounding=floor", "mode=float is the control"),
    ("mode=float quant.input=int", "mode=float is the control"),
    ("policy=conv_linear policy.conv_bits=4 policy.linear_bits=8 bits=3", "policy=conv_linear has a width for every weight"),
    ("qat=ste qat.init=none qat.epochs=2 train.epochs=5", "qat.epochs stands in its place"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "why"), UNREAD, ids=[typed for typed, _ in UNREAD])
def test_what_nobody_reads_is_refused(asked, typed, why):
    with pytest.raises(UserErrors) as raised:
        asked(typed)
    (error,) = raised.value.errors
    assert str(error).startswith(f"{typed.split()[-1].lstrip('+')}. No job reads it: {why}")


@pytest.mark.parametrize("switch", [row.switch for row in CORRECTIONS.values() if row.chooses_codes])
def test_a_rounding_is_refused_where_a_correction_chooses_the_codes(asked, switch):
    """In each job, not only where no job reads it: equal weights under three names would be three comparisons."""
    for rounding in ("floor", "stochastic"):
        with pytest.raises(UserErrors) as raised:
            asked(f"correct.{switch}=true quant.weight.rounding={rounding}")
        message = f"quant.weight.rounding={rounding}: allowed is half_even with correct.{switch}=true. It chooses the code"
        assert str(raised.value.errors[0]).startswith(message)
    asked(f"correct.{switch}=true quant.weight.rounding=half_even")
    asked("correct.bias=empirical quant.weight.rounding=floor")


READ = [
    "train.schedule=step train.milestones=[3] train.gamma=0.5",
    "quant.weight.granularity=per_group quant.weight.group_size=32",
    "quant=symmetric quant.weight.arithmetic=divide",
    "calibrate.weights=mse calibrate.norm=2.4 quant=affine",
    "correct.reestimate_bn=true calibrate.num_images=5",
    "correct.adaround=true correct.adaround_lr=0.1",
    "correct.gpfq=true correct.feedback_act_order=true",
    "correct.qronos=true correct.feedback_damping=0.1",
    "qat=dorefa calibrate=mse",
    "qat=ste qat.momentum=0.5 qat.epochs=2 train.epochs=5",
    "mode=half quant.input=int",
    "float_only=true bits=4 calibrate=mse",
    "policy=conv_linear policy.conv_bits=4 bits=3",
    "calibrate.file=null correct.fold_bn=false",  # which asks for nothing
]  # fmt: skip


@pytest.mark.parametrize("typed", READ)
def test_what_somebody_reads_passes(asked, typed):
    asked(typed)


def test_one_job_of_a_sweep_is_enough(asked):
    jobs = [("train.schedule=cosine",), ("train.schedule=step", "train.milestones=[3]")]
    asked("train.gamma=0.5", *jobs)
    with pytest.raises(UserErrors, match=r"train.gamma=0.1,0.5. No job reads it"):
        asked("train.gamma=0.1,0.5", jobs[0], jobs[0])
    copies = [("checkpoint=x", A8, "export.runtime=litert", f"float_only={value}") for value in ("true", "false")]
    asked("export.integer_io=true", *copies, verb="export")
    asked("experiment=qat_cifar", jobs[0])  # what a file sets is not meant


EVALUATED = ("checkpoint=x",)


@pytest.mark.parametrize(
    ("verb", "words", "typed", "why"),
    [
        ("evaluate", EVALUATED, "train.epochs=3", "it is read by python -m qexp.train, not by qexp.evaluate"),
        ("evaluate", EVALUATED, "trajectory.keep=last", "it is read by python -m qexp.train"),
        ("evaluate", EVALUATED, "model.weights=x", "checkpoint holds the weights here"),
        ("evaluate", EVALUATED, "data.augment=crop", "it is read by python -m qexp.train"),
        ("evaluate", EVALUATED, "fresh=true", "it is read by python -m qexp.train and python -m qexp.export"),
        ("export", (*EVALUATED, "export.cost=false"), "export.repeats=3", "it is read with export.cost=true"),
        (
            "export",
            (*EVALUATED, "float_only=true", "export.runtime=litert"),
            "export.integer_io=true",
            "a float network has no codes of images",
        ),
        ("analyze", (*EVALUATED, "task=profile"), "analyze.probes=3", "task=sensitivity and allocate would, not task=profile"),
        ("analyze", (*EVALUATED, "task=sensitivity"), "evaluate.split=calib", "Layers are compared on analyze.split"),
        ("analyze", (*EVALUATED, "task=allocate"), "bits=3", "widths are those of analyze.widths"),
    ],
)
def test_what_a_command_does_not_read(asked, verb, words, typed, why):
    with pytest.raises(UserErrors, match=why):
        asked(typed, words, verb=verb)
    asked("train=smoke train.channels_last=true", words, verb=verb)  # the memory format is that of an evaluation


def test_the_tables_name_settings_that_exist():
    keys = {*all_keys()}
    assert {*_RULES, *_VERBS, *_TASKS} <= keys
    marked = [settings for settings in (Config, *_groups(Config).values(), *_groups(_groups(Config)["quant"]).values())]
    assert sum(len(marks_of(settings)) for settings in marked) == 15
    for settings in marked:
        assert {mark.sibling for mark in marks_of(settings).values()} <= {*all_keys(settings)}


@pytest.mark.parametrize("verb", ["train", "evaluate", "analyze", "export"])
def test_the_values_of_conf_are_those_of_jobs_that_do_not_read_them(compose, verb):
    """Else a training that was stored before would have another name."""
    for method in ("none", *QAT_METHODS):
        config = validate(compose("data=digits", *([f"qat={method}"] if verb == "train" else []), verb=verb))
        assert as_read(config) == config


def test_equal_trainings_have_one_name_whatever_else_a_sweep_types(job):
    swept = {"train.gamma": 0.2, "train.milestones": [1]}
    cosine, other, step = check([job(), job(swept), job(swept | {"train.schedule": "step"})], "train")
    assert cosine == other and step.train.gamma == 0.2 and step.train.milestones == [1]
    assert training_hash(cosine, "data") == training_hash(other, "data") != training_hash(step, "data")
    assert training_identity(validate(job())) == training_identity(cosine)
    lsq, decayed = check([job({"qat.name": "dorefa"}), job({"qat.name": "dorefa", "qat.scale_decay": 0.1})], "train")
    assert lsq == decayed
    learned = check([job({"qat.name": "lsq", "qat.scale_decay": 0.1, "qat.distill_temperature": 3.0})], "train")[0]
    assert learned.qat.scale_decay == 0.1 and learned.qat.distill_temperature == 1.0
    seeds = [job({"quant.weight.rounding": how, "quant.weight.rounding_seed": 7}) for how in ("floor", "stochastic")]
    assert [config.quant.weight.rounding_seed for config in check(seeds, "train")] == [0, 7]


def test_only_lsq_plus_with_activations_has_another_version(job):
    asked = [{"qat.name": "lsq_plus"}, {"qat.name": "lsq_plus", "qat.activations": False}, {"qat.name": "lsq"}]
    versions = [training_identity(config)["qat"]["version"] for config in check([job(one) for one in asked], "train")]
    assert versions == [4, 3, 3]
