import pytest

from qexp.base.text import Note
from qexp.experiment import messages
from qexp.experiment.estimate import cost_of, estimate
from qexp.experiment.job import with_common_words


def test_the_plan_names_jobs_trainings_and_variants(prepared, capsys):
    merged = [
        prepared({"bits": 4}, {"bits": 8}, {"bits": 4, "mode": "half"}, {"bits": 2, "mode": "half"}),
        prepared({"train.lr": 0.5}),
    ]
    messages.plan(merged, num_jobs=5)
    short = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in short[1:-1] if line[0] == "["] == ["[W4 int", "[W8 int", "[half"]
    assert len(short) == 7 and "listed once" in short[5], "a line for each variant, what is doubled, how to see more"
    assert short[-1].startswith("plan=full")

    full = prepared({"bits": 4, "plan": "full"}, {"bits": 8}, {"bits": 4, "mode": "half"}, {"bits": 2, "mode": "half"})
    messages.plan([full, merged[1]], num_jobs=5)
    out = capsys.readouterr().out
    assert out.startswith("5 jobs: 2 trainings (0 stored), 4 quantized variants\n")
    for label in ("[W4 int]", "[W8 int]", "[half]"):
        assert label in out
    assert "0.weight" in out and "5.weight" in out
    assert "left alone:" in out and "BN statistic" in out
    assert "bits=2" in out and "listed once" in out
    assert out.count("conv and linear weights") == 2  # two tensors, printed once


def test_the_screen_leaves_out_what_all_copies_have_in_common(prepared, capsys):
    asked = {"policy.name": "first_last", "quant.name": "affine"}
    one, other = with_common_words([prepared(asked | {"bits": 4}), prepared(asked | {"bits": 2, "seed": 1})])
    messages.plan([one, other], num_jobs=2)
    first, *titles = capsys.readouterr().out.splitlines()
    assert first == "2 jobs: 2 trainings (0 stored), 2 quantized variants, all first_last e8 affine"
    assert [line.split("]")[0] for line in titles if line[0] == "["] == ["[W4 int", "[W2 int"]
    assert one.variants[1].label == "W4 int first_last e8 affine", "files and tables keep the whole label"
    (alone,) = with_common_words([prepared(asked)])
    assert alone.common == () and alone.shown(alone.variants[1].named) == alone.variants[1].label


def test_a_plan_that_other_trainings_have_too_is_printed_once(prepared, capsys):
    messages.plan([prepared({"bits": 4, "seed": seed}) for seed in (0, 1, 2)], num_jobs=3)
    assert capsys.readouterr().out.count("[W4 int]") == 1


def test_one_is_singular(prepared, capsys):
    messages.plan([prepared({})], num_jobs=1)
    assert capsys.readouterr().out.startswith("1 job: 1 training (0 stored), 1 quantized variant\n")


def test_the_estimate_counts_trainings_time_and_disk(prepared, capsys):
    estimate([prepared({"train.epochs": 4}), prepared({"train.epochs": 40})])
    first, second, total = capsys.readouterr().out.splitlines()
    assert total.startswith("in all: 2 trainings, about ") and "nothing was started" in total
    assert all("min and" in line and "MiB" in line for line in (first, second))


@pytest.mark.parametrize("keep, kept", [("all", 6), ("every:4", 2), ("last", 1)])
def test_the_estimate_knows_what_is_kept(prepared, keep, kept):
    one = prepared({"train.epochs": 6, "trajectory.keep": keep})
    state_mib = sum(value.numel() * value.element_size() for value in one.network().state_dict().values()) / 2**20
    seconds, mib = cost_of(one)
    assert seconds > 0
    assert kept * state_mib <= mib <= (kept + 8) * state_mib


def test_what_corrections_left_alone_is_said_by_reason(capsys):
    notes = [Note(f"bn{number}", "not folded, it is alone") for number in range(5)]
    messages.left_alone("W4 int", [*notes, Note("a, b", "not equalized, no pair"), "nothing converged"])
    assert capsys.readouterr().out.splitlines() == [
        "  note: [W4 int] not folded, it is alone (bn0; bn1; bn2; ... 5 in all)",
        "  note: [W4 int] not equalized, no pair (a, b)",
        "  note: [W4 int] nothing converged",
    ]
