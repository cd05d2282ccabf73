"""What the card of a report says of data and network."""

from qexp.reporting.report import write_report


def test_how_files_became_pixels_and_where_weights_are_from(write, training, tmp_path):
    params = {
        "data.crop": "tensorflow", "data.image_size": 224, "data.interpolation": "bicubic", "data.antialias": True,
        "data.mean": "[0.4980392156862745, 0.5]", "model.weights": "DEFAULT", "checkpoint": "DEFAULT",
    }  # fmt: skip
    runs_dir = write(training(["W8 int"], params=params, epochs=1))
    page = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", figures=False).folder / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "crop tensorflow, image_size 224, interpolation bicubic, antialias true, mean [0.498039, 0.5]" in text
    assert "resnet20, pretrained weights" in text and "none here: the pretrained network as it is" in text
    assert "DEFAULT" not in text


def test_sets_that_are_no_files_have_no_preprocessing(write, training, tmp_path):
    runs_dir = write(training(["W8 int"], epochs=1))
    page = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", figures=False).folder / "report.html"
    assert "Preprocessing" not in page.read_text(encoding="utf-8")
