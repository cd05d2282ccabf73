import copy
from dataclasses import asdict

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.later import stored_values
from qexp.config.root import Config
from qexp.config.validate import validate
from qexp.experiment import variants as module
from qexp.experiment.variants import make_variants
from qexp.nn.inventory import inventory


@pytest.fixture(scope="session")
def values(compose, tiny):
    return compose(*tiny)


@pytest.fixture(scope="session")
def tensors():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    return inventory(net, torch.zeros(2, 1, 8, 8))


def jobs(values, *changes):
    found = []
    for change in changes:
        one = copy.deepcopy(values)
        for key, value in change.items():
            *path, last = key.split(".")
            owner = one
            for name in path:
                owner = owner[name]
            owner[last] = value
        found.append(validate(one))
    return found


def labels(found):
    return [variant.label for variant in found]


def test_the_float_network_comes_first(values, tensors):
    found = make_variants(jobs(values, {"bits": 4}, {"bits": 8}), tensors)
    assert labels(found) == ["fp32", "W4 int", "W8 int"]
    assert [variant.bits for variant in found] == [32, 4, 8]
    assert [variant.is_float for variant in found] == [True, False, False]
    assert found[0].size_bytes > found[2].size_bytes > found[1].size_bytes
    assert not found[0].plan.quantized


def test_half_is_one_variant_whatever_the_width(values, tensors):
    found = make_variants(jobs(values, *({"bits": bits, "mode": "half"} for bits in (4, 8, 16))), tensors)
    assert labels(found) == ["fp32", "half"]
    assert found[1].bits == 16
    assert [note.partition(" ")[0] for note in found[1].notes] == ["bits=8"]  # 4 made it, and 16 is what it is


def test_the_same_job_twice_needs_no_note(values, tensors):
    found = make_variants(jobs(values, {"bits": 4}, {"bits": 4}), tensors)
    assert labels(found) == ["fp32", "W4 int"]
    assert found[1].notes == ()


def test_controls_of_different_widths_are_never_merged(values, tensors):
    found = make_variants(jobs(values, *({"bits": bits, "mode": "float"} for bits in (2, 4, 8, 16))), tensors)
    assert labels(found) == ["fp32", "W2 float", "W4 float", "W8 float", "W16 float"]
    assert len({variant.key for variant in found}) == 5


def test_a_setting_that_nothing_reads_makes_no_variant(values, tensors):
    with_unread = {"bits": 4, "policy.linear_bits": 8}
    (_, plain), (_, unread) = (make_variants(jobs(values, change), tensors) for change in ({"bits": 4}, with_unread))
    assert plain.key == unread.key
    both = make_variants(jobs(values, {"bits": 4}, with_unread), tensors)
    assert labels(both) == ["fp32", "W4 int"]


def test_every_setting_of_the_copy_makes_another_key_and_label(values, tensors):
    found = make_variants(
        jobs(
            values,
            {"bits": 4},
            {"bits": 5},
            {"bits": 4, "mode": "float"},
            {"bits": 4, "mode": "half"},
            {"bits": 4, "mode": "half", "quant.input": "int"},
            {"bits": 4, "quant.name": "affine"},
            {"bits": 4, "quant.name": "symmetric"},
            {"bits": 4, "quant.weight.granularity": "per_channel"},
            {"bits": 4, "quant.weight.rounding": "floor"},
            {"bits": 4, "quant.name": "affine", "quant.weight.arithmetic": "divide"},
            {"bits": 4, "quant.input": "int"},
            {"bits": 4, "policy.name": "conv_linear", "policy.linear_bits": 8},
            {"bits": 4, "policy.name": "conv_linear", "policy.conv_bits": 8},
            {"bits": 4, "policy.name": "first_last", "policy.edge_bits": 6},
            {"bits": 4, "policy.name": "rules", "policy.rules": [{"kind": "conv", "bits": 3}]},
            {"bits": 4, "policy.name": "rules", "policy.rules": [{"kind": "conv", "bits": 2}]},
        ),
        tensors,
    )
    assert len(found) == 17
    assert len({variant.key for variant in found}) == 17
    assert len(set(labels(found))) == 17
    assert "W4 int conv_linear c4 l8" in labels(found)


def test_draws_and_numbers_of_images_are_told_apart(values, tensors):
    grid = {"bits": 4, "correct.reestimate_bn": True}
    drawn = {"bits": 4, "quant.weight.rounding": "stochastic"}
    found = make_variants(
        jobs(values, drawn, drawn | {"quant.weight.rounding_seed": 3}, grid, grid | {"calibrate.num_images": 32}), tensors
    )
    assert labels(found)[1:] == ["W4 int stochastic", "W4 int stochastic_3", "W4 int reestimate_bn", "W4 int reestimate_bn n32"]


def test_the_first_draw_of_calibration_images_is_what_it_was_before_there_were_draws(values, tensors):
    grid = {"bits": 4, "correct.reestimate_bn": True, "calibrate.num_images": 32}
    found = make_variants(jobs(values, grid, *(grid | {"calibrate.draw": draw} for draw in (0, 1, 2))), tensors)
    assert labels(found)[1:] == [f"W4 int reestimate_bn n32{word}" for word in ("", " draw_1", " draw_2")]
    assert "draw" not in stored_values(asdict(found[1].config), Config)["calibrate"]
    assert found[1].key == make_variants(jobs(values, grid), tensors)[1].key
    nobody_reads_it = make_variants(jobs(values, {"bits": 4}, {"bits": 4, "calibrate.draw": 1}), tensors)
    assert labels(nobody_reads_it) == ["fp32", "W4 int"]


def test_draws_and_seeds_of_a_variant_have_the_digits_of_one(values, tensors):
    grid = {"bits": 4, "correct.reestimate_bn": True, "calibrate.num_images": 32}
    sizes = [grid | {"calibrate.batch_size": size, "calibrate.draw": draw} for draw in (0, 1, 2) for size in (8, 16)]
    variants = make_variants(jobs(values, *sizes[:-1]), tensors)[1:]
    assert len({variant.label for variant in variants}) == 5
    assert len({variant.named.without([f"draw_{variant.draw}"]) for variant in variants}) == 2
    # The third draw has one size only, and the other's digits all the same.
    assert variants[-1].label.startswith("W4 int reestimate_bn n32 draw_2 ")
    ordered = make_variants(
        jobs(values, *({"bits": 4, "correct.reestimate_bn": True, "calibrate.draw": d} for d in (0, 1))), tensors
    )
    assert len(set(labels(ordered))) == 3
    drawn = {"bits": 4, "correct.adaround": True}
    seeded = [
        labels(make_variants(jobs(values, *(drawn | {"seed": seed, "correct.adaround_lr": lr} for lr in (0.01, 0.02))), tensors))
        for seed in (0, 1)
    ]
    assert seeded[0] == seeded[1] and len(set(seeded[0])) == 3


def test_a_format_is_always_told(values, tensors):
    float8 = {"bits": 8, "quant.name": "minifloat"}
    wide = {"bits": 4, "quant.name": "minifloat", "policy.name": "conv_linear", "policy.conv_bits": 4, "policy.linear_bits": 8}
    named = labels(make_variants(jobs(values, float8, float8 | {"quant.weight.format": "e5m2"}, wide), tensors))[1:]
    assert named[:2] == ["W8 int minifloat e4m3fn", "W8 int minifloat e5m2"]
    assert named[2] == "W4 int conv_linear c4 l8 minifloat e2m1/e4m3fn"


def test_digits_are_told_once(values, tensors):
    named = make_variants(jobs(values, {"bits": 4}), tensors)[1].named
    assert named.with_word("6c79").with_word("6c79").text == "W4 int 6c79"


@pytest.mark.parametrize("change", [{"evaluate.split": "select"}, {"evaluate.num_images": 9}])
def test_the_key_covers_what_is_scored(values, tensors, change):
    plain, other = (make_variants(jobs(values, extra), tensors) for extra in ({}, change))
    assert {variant.key for variant in plain}.isdisjoint(variant.key for variant in other)


@pytest.mark.parametrize("change", [{"evaluate.batch_size": 7}, {"evaluate.keep": "none"}, {"name": "other"}])
def test_the_key_leaves_out_what_changes_no_number(values, tensors, change):
    plain, other = (make_variants(jobs(values, extra), tensors) for extra in ({}, change))
    assert [variant.key for variant in plain] == [variant.key for variant in other]


@pytest.mark.parametrize("version", ["QUANTIZER_VERSION", "EVALUATOR_VERSION"])
def test_a_mended_quantizer_or_evaluator_has_new_keys(values, tensors, version, monkeypatch):
    before = make_variants(jobs(values, {}), tensors)
    monkeypatch.setattr(module, version, getattr(module, version) + 1)
    after = make_variants(jobs(values, {}), tensors)
    assert all(old.key != new.key for old, new in zip(before, after, strict=True))


def test_the_structure_is_what_a_shadow_is_made_for(values, tensors):
    found = make_variants(jobs(values, {}, {"mode": "half"}, {"quant.input": "int"}), tensors)
    assert [variant.structure for variant in found] == [(False, "none"), (False, "none"), (True, "none"), (False, "int")]


def test_a_label_is_no_part_of_a_key_and_two_variants_are_told_apart_by_theirs(values, tensors):
    plain = make_variants(jobs(values, {"bits": 4}, {"bits": 8}), tensors)
    found = make_variants(jobs(values, {"bits": 4, "label": "ours"}, {"bits": 8, "float_only": True, "label": "none"}), tensors)
    assert labels(found) == ["fp32", "ours"] and found[1].named.generated == plain[1].named
    assert [variant.key for variant in found] == [variant.key for variant in plain[:2]]


def test_variants_that_read_alike_have_their_digits_behind_typed_labels_unseen(values, tensors):
    """A report takes rows of one plan and one generated label for the same variant."""
    alike = [{"correct.fold_bn": True, "correct.bias": "empirical", "calibrate.split": split} for split in ("calib", "train")]
    plain = make_variants(jobs(values, *alike), tensors)[1:]
    typed = make_variants(jobs(values, alike[0] | {"label": "a"}, alike[1] | {"label": "b"}), tensors)[1:]
    assert labels(typed) == ["a", "b"] and [one.named.generated for one in typed] == [one.named for one in plain]


def test_jobs_of_the_same_numbers_have_one_label(values, tensors):
    half = {"mode": "half", "bits": 8}
    found = make_variants(jobs(values, half | {"bits": 4}, half | {"label": "ours"}), tensors)
    assert labels(found) == ["fp32", "ours"] and len(found[1].notes) == 1
    with pytest.raises(UserError, match="label=theirs: allowed is ours. Two jobs ask for the same numbers \\(half\\)"):
        make_variants(jobs(values, half | {"label": "ours"}, half | {"label": "theirs"}), tensors)
