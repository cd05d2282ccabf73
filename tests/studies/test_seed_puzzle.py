"""The identities of document 002's map, on a small network trained for a moment."""

import pytest
import torch

from qexp.engine.probe import check_in_use
from qexp.studies import seed_maps as maps
from qexp.studies import seed_puzzle
from qexp.studies.seed_puzzle import BITS, name_of
from qexp.studies.settings import StudySettings
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


def test_every_key_mapped_is_chance_at_every_width(outcome):
    scores = {row["variant"]: row["prec1"] for row in outcome.rows}
    assert all(scores[name_of("every key, raw codes with int()", bits)] <= 15 for bits in BITS)


def test_the_map_in_closed_form():
    """q = a (w - mid - D/2): the offset alone, scaled, is the document's code."""
    weight = torch.randn(200, generator=torch.Generator().manual_seed(0))
    for bits in BITS:
        a = maps.gain(weight, bits)
        assert torch.allclose(maps.offset_only(weight, bits) * a, maps.raw(weight, bits), atol=2.0**bits * 1e-6)
        assert maps.zero_subtracted(torch.cat([weight, torch.zeros(1)]), bits)[-1] == 0


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
