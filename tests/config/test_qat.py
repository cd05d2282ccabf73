import pytest

from qexp.base.errors import UserError
from qexp.config.qat import QatSettings
from qexp.config.qat_methods import QAT_METHODS
from qexp.config.quant import ActivationQuantSettings, QuantSettings, WeightQuantSettings
from qexp.config.train import TrainSettings


def test_a_float_training_is_left_as_it_is():
    train, quant = TrainSettings(epochs=1, lr=0.1, batch_size=8), QuantSettings(name="affine")
    assert not QatSettings().is_on
    assert QatSettings(epochs=3, lr=1.0).recipe(train) is train and QatSettings().quantizers(quant, 4) is quant


def test_behind_a_float_training_the_recipe_is_a_fine_tuning():
    train = TrainSettings(batch_size=8, lr=0.2, epochs=10, weight_decay=1e-3, warmup_epochs=2)
    recipe = QatSettings(name="lsq").recipe(train)
    assert (recipe.lr, recipe.warmup_epochs, recipe.epochs, recipe.weight_decay) == (pytest.approx(0.02), 0, 10, 1e-3)
    assert QatSettings(name="lsq", init="none").recipe(train) == QatSettings(name="lsq", init="checkpoint").recipe(train) == train
    recipe = QatSettings(name="lsq", lr=0.5, epochs=3, weight_decay=0.0, warmup_epochs=1).recipe(train)
    assert (recipe.lr, recipe.warmup_epochs, recipe.epochs, recipe.weight_decay) == (0.5, 1, 3, 0.0)


@pytest.mark.parametrize("name", QAT_METHODS)
def test_each_method_says_its_grids(name):
    quant, method = QatSettings(name=name).quantizers(QuantSettings(), 3), QAT_METHODS[name]
    assert (quant.name, quant.activation.scheme) == (method.weights, method.activations)
    assert (quant.activation.bits, quant.activation.layers_only) == (3, True)
    asked = QuantSettings(activation=ActivationQuantSettings(bits=5, places="all"))
    quant = QatSettings(name=name).quantizers(asked, 3)
    assert (quant.activation.bits, quant.activation.layers_only) == (5, False)
    assert QatSettings(name=name, activations=False).quantizers(QuantSettings(), 3).activation.bits is None


@pytest.mark.parametrize(
    ("name", "grid"), [(name, grid) for name, method in QAT_METHODS.items() for grid in method.weight_choices[1:]]
)
def test_where_the_user_may_choose_the_grid(name, grid):
    assert QatSettings(name=name).quantizers(QuantSettings(name=grid), 4).name == grid


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "qat.epochs=0: allowed is an integer from 1 to 100000"),
        ({"weight_decay": -0.1}, "qat.weight_decay=-0.1: allowed is a number of at least 0.0"),
        ({"warmup_epochs": -1}, "qat.warmup_epochs=-1: allowed is an integer of at least 0"),
        ({"momentum": 1.5}, "qat.momentum=1.5: allowed is a number from 0.0 to 1.0"),
        ({"scale_decay": -1.0}, "qat.scale_decay=-1.0: allowed is a number of at least 0.0"),
        ({"alpha_decay": -1.0}, "qat.alpha_decay=-1.0: allowed is a number of at least 0.0"),
        ({"freeze_bn_epoch": 0}, "qat.freeze_bn_epoch=0: allowed is an integer of at least 1"),
        ({"distill_weight": 2.0}, "qat.distill_weight=2.0: allowed is a number from 0.0 to 1.0"),
        (
            {"name": "pact", "first_step": "calibrated"},
            "qat.first_step=calibrated: allowed is paper with qat=pact. The others say",
        ),
        ({"lr": 0.0}, "qat.lr=0.0: allowed is a number above 0.0"),
        ({"distill_temperature": 0.0}, "qat.distill_temperature=0.0: allowed is a number above 0.0"),
        ({"distill_weight": 0.5, "init": "none"}, "qat.distill_weight=0.5: allowed is 0 with qat.init=none. Distillation learns"),
        ({"name": "every_step", "batch_norm": "folded"}, "qat.batch_norm=folded: allowed is unfolded with qat=every_step"),
        ({"name": "pact", "batch_norm": "folded"}, "qat.batch_norm=folded: allowed is unfolded with qat=pact"),
        ({"name": "dorefa", "batch_norm": "folded"}, "qat.batch_norm=folded: allowed is unfolded with qat=dorefa"),
        (
            {"name": "lsq", "batch_norm": "folded", "reestimate_bn": True},
            "qat.reestimate_bn=true: allowed is false with qat.batch_norm=folded",
        ),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(UserError) as error:
        QatSettings(**values)
    assert str(error.value).startswith(message)


def weight(**values):
    return QuantSettings(weight=WeightQuantSettings(**values))


def activation(**values):
    return QuantSettings(activation=ActivationQuantSettings(**values))


@pytest.mark.parametrize(
    ("name", "quant", "message"),
    [
        ("lsq", QuantSettings(name="affine"), "quant=affine: allowed is linear with qat=lsq. lsq has a quantizer of its own"),
        ("ste", QuantSettings(name="log2"), "quant=log2: allowed is one of symmetric_restricted, symmetric, affine"),
        ("every_step", QuantSettings(name="dorefa"), "quant=dorefa: allowed is one of linear, affine, symmetric,"),
        ("pact", weight(granularity="per_channel"), "quant.weight.granularity=per_channel: allowed is per_tensor with qat=pact"),
        (
            "dorefa",
            weight(granularity="per_channel"),
            "quant.weight.granularity=per_channel: allowed is per_tensor with qat=dorefa",
        ),
        ("lsq", weight(granularity="per_group"), "quant.weight.granularity=per_group: allowed is per_tensor or per_channel with"),
        ("lsq", weight(rounding="floor"), "quant.weight.rounding=floor: allowed is half_even with qat=lsq"),
        ("ste", weight(arithmetic="divide"), "quant.weight.arithmetic=divide: allowed is reciprocal with qat=ste"),
        ("every_step", weight(rounding="stochastic"), "quant.weight.rounding=stochastic: allowed is another rounding with"),
        ("lsq", QuantSettings(input="round"), "quant.input=round: allowed is none with qat=lsq"),
        ("lsq", activation(dynamic=True), "quant.activation.dynamic=true: allowed is false with qat=lsq"),
        ("ste", activation(granularity="per_channel"), "quant.activation.granularity=per_channel: allowed is per_tensor with"),
        ("ste", activation(rounding="floor"), "quant.activation.rounding=floor: allowed is half_even with qat=ste"),
        ("ste", activation(arithmetic="divide"), "quant.activation.arithmetic=divide: allowed is reciprocal with qat=ste"),
        *[
            (name, activation(scheme="symmetric"), f"quant.activation.scheme=symmetric: allowed is affine with qat={name}")
            for name in QAT_METHODS.names_where(lambda row: row.defines_activations)
        ],
    ],
)
def test_a_quantizer_that_the_method_does_not_have_is_refused(name, quant, message):
    with pytest.raises(UserError) as error:
        QatSettings(name=name).quantizers(quant, 4)
    assert str(error.value).startswith(message)


def test_bits_of_activations_that_stay_float_are_refused():
    with pytest.raises(UserError, match=r"quant.activation.bits=4: allowed is null with qat.activations=false"):
        QatSettings(name="lsq", activations=False).quantizers(activation(bits=4), 4)


def test_every_step_leaves_the_rest_of_the_weights_grid_to_the_user():
    chosen = weight(granularity="per_in_out_channel", rounding="floor", arithmetic="divide")
    assert QatSettings(name="every_step").quantizers(chosen, 4).weight == chosen.weight
    assert QatSettings(name="ste").quantizers(activation(scheme="symmetric"), 4).activation.scheme == "symmetric"


@pytest.mark.parametrize("name", QAT_METHODS)
def test_the_mask_is_the_methods_unless_given(name, compose):
    """The limits of an observed range are its own ends, which the paper's mask would hold."""
    assert QatSettings(**compose(f"qat={name}")["qat"]).gradient_mask == QAT_METHODS[name].mask
    for mask in ("paper", "rounded"):
        assert QatSettings(name=name, mask=mask).gradient_mask == mask
