"""The identities of document 002's map, on a small network trained for a moment."""

from types import SimpleNamespace

import pytest
import torch

from qexp.config.study import StudySettings
from qexp.engine.probe import check_in_use
from qexp.studies import seed_checks, seed_puzzle
from qexp.studies import seed_maps as maps
from qexp.studies.seed_puzzle import BITS, name_of
from qexp.studies.subject import load_subject


@pytest.fixture(scope="module")
def subject():
    return load_subject(StudySettings(name="seed_puzzle"))


@pytest.fixture(scope="module")
def outcome(subject):
    return seed_puzzle.study(subject)


def test_the_small_network_has_learned_something(outcome):
    row = next(row for row in outcome.rows if row["variant"] == "float")
    assert row["prec1"] > 90 and row["n"] == 360


def test_every_identity_holds(outcome):
    assert [check.name for check in outcome.failed] == []
    names = " ".join(check.name for check in outcome.checks)
    for claim in ("offset only", "scale only", "symmetric codes", "scale in BN", "never executed", "the probe", "constant"):
        assert claim in names
    assert all(check.identity for check in outcome.checks)
    assert {check.n for check in outcome.checks if "=" in check.name} == {360}


def test_every_key_mapped_is_chance_at_every_width(outcome):
    scores = {row["variant"]: row["prec1"] for row in outcome.rows}
    assert all(scores[name_of("every key, raw codes with int()", bits)] <= 15 for bits in BITS)


def test_the_map_in_closed_form():
    """q = a (w - mid - D/2): the offset alone, scaled, is the document's code."""
    weight = torch.randn(200, generator=torch.Generator().manual_seed(0))
    for bits in BITS:
        a = maps.gain(weight, bits)
        assert torch.allclose(maps.offset_only(weight, bits) * a, maps.raw(weight, bits), atol=2.0**bits * 1e-6)
        assert float(maps.raw(torch.cat([weight, torch.zeros(1)]), bits)[-1]) == pytest.approx(
            maps.zero_point(weight, bits), abs=0.01
        )


def test_the_zero_point_rounded_is_an_offset():
    """The unrounded one leaves codes' rounding alone; the rounded one shifts all weights by the same part of a step."""
    weight = torch.rand(2000, generator=torch.Generator().manual_seed(0)) - 0.3
    scaled, zero = weight * maps.gain(weight, 4), maps.zero_point(weight, 4)
    offset = zero - round(zero)
    assert 0.1 < abs(offset) <= 0.5
    error = maps.zero_subtracted(weight, 4) - scaled
    assert float(error.abs().max()) <= 0.5 + 1e-5 and abs(float(error.mean())) < 0.02
    both = maps.rounded_zero_subtracted(weight, 4)
    assert torch.equal(both, both.round()) and torch.allclose(both - scaled, error + offset, atol=1e-5)
    assert torch.allclose(maps.rounded_zero_alone(weight, 4) - scaled, torch.tensor(offset), atol=1e-5)


def test_expected_numbers_of_a_network_of_the_users():
    """Each can fail, and says on how many images it rests."""
    again = "BN re-estimated"
    prec1 = {"float": 80.0, f"float, {again}": 79.0, "float, BN of the batch": 78.0, "float, input.int(), BN of the batch": 49.0}
    prec1 |= {f"{name}, W{bits}, {again}": 78.0 for name in ("zero point subtracted", "raw codes") for bits in BITS}
    prec1 |= {f"rounded zero point{how}, W4, {again}": 50.0 for how in (" subtracted", ", unrounded codes")}

    def failed():
        evaluations = {key: SimpleNamespace(metrics=SimpleNamespace(prec1=value, n=7)) for key, value in prec1.items()}
        checks = seed_checks._numbers(seed_checks.Scores(evaluations, num_classes=10), BITS, zero_share=0.6)
        assert {check.n for check in checks} == {7} and not any(check.identity for check in checks)
        return [check.name for check in checks if not check.passed]

    assert failed() == ["raw codes really run (3 variants): chance"]
    prec1 |= {f"raw codes, W{bits}, {again}": 10.0 for bits in BITS}
    assert failed() == []
    prec1[f"zero point subtracted, W4, {again}"] = 55.0
    assert failed() == ["zero point subtracted, W4", "rounding the zero point, W4"]


def test_a_broken_identity_is_a_failed_check(subject, monkeypatch):
    """The checks can fail: with a wrong offset, raw codes are no longer the offset alone."""
    monkeypatch.setattr(maps, "offset_only", lambda weight, bits: weight.flip(0))
    failed = [check.name for check in seed_puzzle.study(subject).failed]
    assert failed and all("offset only" in name for name in failed)


def test_the_never_executed_copy(subject):
    """It holds other weights, is in eval mode, and runs the original; the probe sees that, and flags no copy that runs."""
    layers = list(subject.norms.values())
    names = [f"{layer}.weight" for layer in layers]
    changed = maps.mapped(subject.model, layers, maps.raw_int, 4)
    never = maps.never_executed(subject.model, changed.state_dict())
    images = subject.test[0].images[:4]
    assert not never.training and torch.equal(never.state_dict()[names[0]], changed.state_dict()[names[0]])
    assert torch.equal(never(images), maps.with_batch_statistics(subject.model)(images))
    assert check_in_use(subject.model, never, names, images) == names
    assert check_in_use(subject.model, maps.mapped(subject.model, layers, maps.symmetric, 8), names, images) == []
