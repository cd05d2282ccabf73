"""A training that is stopped in every way and place, and the same command again: the numbers of an undisturbed run."""

import csv
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

STEPS = 7  # of an epoch
FAULTS = (
    "file.written:9", "file.renamed:7", "epoch.weights:2", "epoch.log:2", "state.written:2", "state.rotated:2", "journal.torn:4",
    "journal.written:6",
)  # fmt: skip
OTHER_TIMES = (
    "file.written", "file.renamed", "file.renamed:16", "state.rotated:5", "journal.torn", "journal.torn:9", "journal.written:3",
    "journal.written:11",
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tree of 100 training and 30 test images of 8 x 8 pixels, in three classes."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for number in range(130):
        name, label = ("train" if number < 100 else "test"), number % 3
        pixels = torch.randint(0, 160, (8, 8, 3), generator=generator, dtype=torch.uint8)
        pixels[:, :, label] += 60
        folder = root / name / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def command(tiny, images):
    """Two epochs of seven steps over streamed images, with dropout and batch norm, and three copies of each epoch."""
    options = [text for text in tiny if not text.startswith(("model.factory=", "data="))]
    (network,) = [text.replace(":tiny", ":Mortal") for text in tiny if text.startswith("model.factory=")]
    data = ("name=images", "data=imagefolder", f"data.root={images}", "data.storage=stream", "data.workers=0")
    train = ("train.batch_size=16", "train.epochs=2", "deterministic=true", "evaluate.batch_size=10")
    return (*options, network, *data, *train, "bits=4,8", "-m")


@pytest.fixture(scope="module")
def undisturbed(ranks, command, numbers, tmp_path_factory):
    """Number of ranks -> what the training leaves behind when nothing happens."""
    found, before = {}, os.getcwd()
    for count in (1, 2):
        os.chdir(tmp_path_factory.mktemp("undisturbed"))
        assert [child.wait() for child in ranks(count, *command)] == [0] * count
        found[count] = numbers("runs")
        found[count]["table"] = table()
    os.chdir(before)
    return found


def table():
    """The table's rows without times."""
    with open("results/images/table.csv") as handle:
        return [{key: text for key, text in row.items() if key not in ("time_ms", "sweep")} for row in csv.DictReader(handle)]


def assert_same(numbers, expected):
    found = numbers("runs") | {"table": table()}
    for key, value in expected.items():
        assert found[key] == value, key
    (folder,) = Path("runs/trainings").iterdir()
    assert {path.name for path in folder.iterdir()} == {"training.json", "train.jsonl", "epochs", "variants", "predictions"}
    assert not list(Path("runs").rglob("*.tmp"))


@pytest.mark.parametrize(
    "count, workers, every, step, how",
    [
        (1, 0, None, STEPS + 1, "SIGKILL"),  # at an epoch's boundary: the second has begun and nothing of it is stored
        (1, 2, 3, STEPS + 5, "SIGKILL"),
        pytest.param(1, 2, 2, 4, "SIGKILL", marks=pytest.mark.slow),
        (1, 0, None, 3, "SIGTERM"),
        pytest.param(1, 2, None, STEPS + 2, "SIGTERM", marks=pytest.mark.slow),
        pytest.param(2, 0, None, STEPS + 1, "SIGKILL", marks=pytest.mark.slow),
        (2, 2, 3, STEPS + 5, "SIGKILL"),
        pytest.param(2, 2, None, 4, "SIGTERM", marks=pytest.mark.slow),
        (2, 0, 5, STEPS + 3, "SIGTERM"),
    ],
)
def test_the_same_command_again(ranks, command, numbers, undisturbed, count, workers, every, step, how):
    arguments = (*command, f"data.workers={workers}", *([f"train.checkpoint_every_steps={every}"] if every else []))
    hurt = str(count - 1)
    stopped = ranks(count, *arguments, MORTAL_STEP=str(step), MORTAL_HOW=how, MORTAL_RANK=hurt)
    codes = [child.wait() for child in stopped]
    (folder,) = Path("runs/trainings").iterdir()
    if how == "SIGTERM":
        assert codes == [143] * count
        # A step after the signal where the ranks have to agree.
        assert f"after batch {(step + count - 1) % STEPS}\n" in (folder / "PREEMPTED").read_text()
    else:
        assert codes[-1] == -signal.SIGKILL and 0 not in codes
    assert not Path("results").exists()
    for path in folder.glob("*.pt"):
        assert torch.load(path, weights_only=True)["epoch"] <= 1
    again = ranks(count, *arguments)
    assert [child.wait() for child in again] == [0] * count, again[0].text
    assert (": going on " in again[0].text) == (step > STEPS or every is not None or how == "SIGTERM")
    assert_same(numbers, undisturbed[count])


@pytest.mark.parametrize("fault", [*FAULTS, *(pytest.param(fault, marks=pytest.mark.slow) for fault in OTHER_TIMES)])
def test_a_crash_between_two_system_calls(warm, command, numbers, undisturbed, fault):
    arguments = (*command, "train.checkpoint_every_steps=2")
    killed = warm.start(*arguments, QEXP_FAULT=fault)
    assert killed.wait() == -signal.SIGKILL, killed.text
    again = warm.start(*arguments)
    assert again.wait() == 0, again.text
    assert_same(numbers, undisturbed[1])


def test_a_truncated_last_falls_back_to_previous(warm, command, numbers, undisturbed):
    killed = warm.start(*command, "train.checkpoint_every_steps=2", MORTAL_STEP=str(STEPS + 6))
    assert killed.wait() == -signal.SIGKILL
    (last,) = Path("runs/trainings").glob("*/last.pt")
    last.write_bytes(last.read_bytes()[:1000])
    again = warm.start(*command)
    assert again.wait() == 0, again.text
    assert "last.pt is damaged" in again.text and f"going on in epoch 2, after batch 2 of {STEPS}\n" in again.text
    assert_same(numbers, undisturbed[1])


def test_another_number_of_ranks_goes_on_and_is_marked(warm, ranks, command, numbers, undisturbed):
    stopped = warm.start(*command, MORTAL_STEP=str(STEPS + 3), MORTAL_HOW="SIGTERM")
    assert stopped.wait() == 143
    again = ranks(2, *command)
    assert [child.wait() for child in again] == [0, 0], again[0].text
    found = {(row["variant"], row["trained_by"]) for row in table()}
    assert found == {("fp32", "1 then 2"), ("W4 int", "1 then 2"), ("W8 int", "1 then 2")}
    assert {row["trained_by"] for row in undisturbed[2]["table"]} == {"2"}
    first = {key: value for key, value in numbers("runs")["measured"].items() if key[1] == 1}
    assert first == {key: value for key, value in undisturbed[1]["measured"].items() if key[1] == 1}


def test_ctrl_c_loses_nothing(warm, command, numbers, undisturbed):
    stopped = warm.start(*command, MORTAL_STEP="5", MORTAL_HOW="SIGINT")
    assert stopped.wait() == 130 and "The same command goes on" in stopped.text
    assert warm.start(*command).wait() == 0
    assert_same(numbers, undisturbed[1])


def test_nothing_is_lost_without_a_store_of_its_own(warm, command, numbers, undisturbed):
    """What a killed process leaves may be moved to another machine: the store holds all of it, and no path of the old one."""
    assert warm.start(*command, MORTAL_STEP=str(STEPS + 1)).wait() == -signal.SIGKILL
    Path("elsewhere").mkdir()
    shutil.move("runs", "elsewhere/runs")
    os.chdir("elsewhere")
    assert warm.start(*command).wait() == 0
    assert_same(numbers, undisturbed[1])
