"""Folders are tried before anything starts, and `~` is the user's folder everywhere."""

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from qexp import report, study
from qexp.base.errors import UserError
from qexp.config.study import StudySettings
from qexp.sweep.arguments import quote_places

FOLDERS = [("runs_dir", "train"), ("results_dir", "train"), ("export.folder", "export")]
WRONG = {
    "file": "Not a directory",
    "file/below": "Not a directory",
    "link": "No such file or directory",
    "/proc/none": "",  # whatever the system says there
    "": "(empty): allowed is a folder",
    "null": "",
    "long/" + "n" * 256: "a path whose names have at most 255 bytes each",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:10] or "empty")
@pytest.mark.parametrize(("key", "verb"), FOLDERS)
def test_a_folder_that_cannot_be_written_to_starts_nothing(cli, tiny, key, verb, text):
    if (key, text) == ("export.folder", "null"):
        return  # its default
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    Path("net.pth").touch()
    arguments = ["checkpoint=net.pth", "bits=8"] if verb == "export" else ["bits=8"]
    done = cli(*tiny, *arguments, f"{key}={text}", verb=verb)
    assert done.code == 2 and f"{key}=" in done.err and WRONG[text] in done.err and "Traceback" not in done.err, done.err
    assert sorted(os.listdir()) == ["file", "link", "net.pth"]


@pytest.mark.parametrize("text", [text for text in WRONG if text not in ("", "null")], ids=lambda text: text[:10])
@pytest.mark.parametrize("verb", ["report", "study"])
def test_results_that_cannot_be_written_are_not_computed(verb, text):
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"results_dir={text[:40]}.*{WRONG[text]}"):
        if verb == "report":
            report.run(report.ReportSettings(name="digits", results_dir=text))
        else:
            study.run(StudySettings(name="scalar", num_images=8, results_dir=text))
    assert sorted(os.listdir()) == ["file", "link"]


def test_what_is_within_is_tried_too(cli, tiny):
    for key, within in (("runs_dir", "a/trainings"), ("runs_dir", "b/journal"), ("results_dir", "c/digits")):
        Path(within).parent.mkdir()
        Path(within).touch()
        done = cli(*tiny, f"{key}={within[0]}")
        assert done.code == 2 and f"{key}={within[0]}: allowed is a folder that can be written to. {within}" in done.err


@pytest.mark.parametrize("wrong", ["table.csv", "predictions.safetensors", "figures/prec1_by_bits.svg", "figures"])
def test_a_folder_by_the_name_of_a_file_is_told_before_work(cli, tiny, wrong):
    place = Path("results", "digits", wrong)
    place.parent.mkdir(parents=True)
    place.touch() if wrong == "figures" else place.mkdir()
    done = cli(*tiny, "name=digits", "results_dir=results")
    assert done.code == 2 and f"{place} would be a f" in done.err and os.listdir() == ["results"], done.err
    with pytest.raises(UserError, match=f"results_dir=results.*{place} would be a f"):
        report.run(report.ReportSettings(name="digits"))
    if wrong == "table.csv":
        with pytest.raises(UserError, match="Is a directory"):
            report.run(report.ReportSettings(name="digits", verify=True))


def test_the_users_folder(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    done = cli(*tiny, "runs_dir=~/runs", "results_dir=~/results", "bits=8", "-m")
    assert done.code == 0, done.err
    assert sorted(os.listdir("home")) == ["results", "runs"] and os.listdir() == ["home"]


@pytest.mark.parametrize("key", ["name", "checkpoint", "model.weights", "image", "model.factory", "calibrate.file", "data.root"])
def test_a_name_that_names_no_file(cli, tiny, key):
    done = cli(*tiny, f"{key}=" + "n" * 256 + ".py:f" * (key == "model.factory"))
    assert done.code == 2 and f"{key}=nnn" in done.err and "Traceback" not in done.err, done.err
    assert os.listdir() == []


def test_trainings_on_another_disk_are_discarded_there(cli, tiny):
    Path("elsewhere").mkdir()
    Path("runs").mkdir()
    Path("runs/trainings").symlink_to("../elsewhere")
    assert cli(*tiny, "bits=8").code == 0
    done = cli(*tiny, "bits=8", "fresh=true")
    assert done.code == 0 and not [*Path("runs").glob(".trash*"), *Path("elsewhere").glob(".trash*")]


@pytest.mark.parametrize(
    "path",
    ["epoch=3-step=1200.ckpt", "my runs, v2/best (1).pth", "a,b.pt", "größe.pt", "best[0].pt", "it's.pt", "a\\'b\\", "{b}"],
)
def test_a_path_is_taken_as_it_is_typed(path):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    (word,) = quote_places([f"checkpoint={path}"])
    assert quote_places([word]) == [word]
    (override,) = OverridesParser.create().parse_overrides([word])
    assert override.value() == path or override.value().text == path


def test_a_sweep_of_paths_stays_one():
    assert quote_places(["checkpoint=a.pt,b.pt", "bits=4,8", "-m"]) == ["checkpoint=a.pt,b.pt", "bits=4,8", "-m"]
    for name in ("epoch=1.pt", "plain.pt"):
        Path(name).touch()
    assert quote_places(["checkpoint=epoch=1.pt,plain.pt"]) == ["checkpoint='epoch=1.pt',plain.pt"]
