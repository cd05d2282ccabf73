"""What the splits of a job hold, against each other: copies of images, classes of one split alone, few classes."""

from pathlib import Path

import pytest
import torch

from qexp.base.errors import UserError
from qexp.data.bundle import DataBundle
from qexp.data.ram import RamImages, RamPart
from qexp.data.splits import Split, Splits
from qexp.experiment.data_checks import check_training, data_alarms, data_notes
from qexp.sweep.check import check


@pytest.fixture
def data():
    """A bundle of 400 training and 200 test images of noise, of which `copies` are training images."""

    def make(copies=0, train=(0, 1, 2, 3, 4, 5), test=(0, 1, 2, 3, 4, 5)):
        images = torch.randint(256, (600, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        images[400 : 400 + copies] = images[:copies]
        labels = [torch.tensor(classes)[torch.arange(count) % len(classes)] for classes, count in ((train, 400), (test, 200))]
        parts = {"train": RamPart(images[:400], labels[0]), "test": RamPart(images[400:], labels[1])}
        rows = {Split.TRAIN: torch.arange(400), Split.TEST: torch.arange(200)}
        return DataBundle(
            RamImages(parts, tuple("abcdef")), Splits(rows, {Split.TEST: "test"}), mean=[0.5], std=[0.5], augment="none"
        )

    return make


@pytest.fixture
def config(job, tmp_path):
    def make(changes=None, verb="train"):
        return check([job(changes)], verb)[0]

    return make


@pytest.mark.parametrize(("copies", "count"), [(0, 0), (1, 0), (2, 1), (100, 1)])
def test_more_copies_of_training_images_than_published_sets_hold_are_an_alarm(data, config, copies, count):
    bundle = data(copies)
    check_training(config(), bundle)
    assert (
        data_alarms(config(), bundle)
        == [f"{copies} of 200 images of the test split are in the train split too, byte for byte"] * count
    )
    assert data_alarms(config({"evaluate.split": "train"}), bundle) == []  # asked for by name


def test_a_test_split_of_training_images_is_refused_where_it_is_trained_on(data, config, tmp_path):
    with pytest.raises(UserError, match="data=digits: allowed is a test split of other images than train. 101 of 200"):
        check_training(config(), data(101))
    torch.save({}, tmp_path / "w.pt")
    evaluated = config({"checkpoint": str(tmp_path / "w.pt")}, "evaluate")
    check_training(evaluated, data(200))
    assert data_alarms(evaluated, data(200)) == ["200 of 200 images of the test split are in the train split too, byte for byte"]


def test_classes_of_one_split_alone(data, config):
    untrained = data(train=(0, 1), test=(0, 1, 3, 4, 5))
    with pytest.raises(UserError, match=r"No training image is of 3 of 6 classes \(d, e, f\) that the test split has"):
        check_training(config(), untrained)
    cut = config({"data.num_train": 2})  # so few images were asked for
    check_training(cut, untrained)
    assert data_alarms(cut, untrained) == ["no training image is of 3 of 6 classes (d, e, f) that are scored"]
    unscored = data(test=(0, 2, 3, 4, 5))
    check_training(config(), unscored)
    assert data_alarms(config(), unscored) == []
    assert data_notes(config(), unscored, 6) == ["no image of the test split is of 1 of 6 classes (b) that are trained"]
    with pytest.raises(UserError, match="training images of at least 2 classes"):
        check_training(config(), data(train=(3,), test=(3,)))


@pytest.mark.parametrize(("class_count", "said"), [(3, ["Prec@5 of 3 classes is 100 whatever is predicted."]), (6, [])])
def test_prec5_of_few_classes(data, config, class_count, said):
    assert data_notes(config(), data(), class_count) == said


THREE_CLASSES = """
import torch

def images():
    noise = torch.randint(256, (90, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(60) % 3
    return {"train_images": noise[:60], "train_labels": labels, "test_images": noise[50:80], "test_labels": labels[:30]}
"""


def test_what_a_page_says_of_the_data(cli, tiny, monkeypatch):
    # Pictures take most of the time of a report, and nobody looks at them here.
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: file.write(b"<svg ></svg>"))
    Path("own.py").write_text(THREE_CLASSES)
    done = cli(*tiny, "data=custom", "data.factory=own.py:images", "bits=4")
    assert done.code == 0, done.err
    alarm, few = (
        "10 of 30 images of the test split are in the train split too",
        "Prec@5 of 3 classes is 100 whatever is predicted.",
    )
    for text in (done.out, Path("results/custom/table.md").read_text(), Path("results/custom/report.html").read_text()):
        assert alarm in text and few in text
