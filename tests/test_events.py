"""`--json` and `quiet=true`: every line of real commands is an event, and has the fields that docs/agents.md lists."""

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path

import pytest

from qexp.base.keyvalue import run_verb
from qexp.sweep.help import VERBS

sys.path.insert(0, str(Path(__file__).parent))
import event_schema as schemas
from event_schema import (
    Analysed,
    Checked,
    Copied,
    Estimated,
    Merged,
    PageNamed,
    Removed,
    Stored,
    Text,
    Verified,
    Written,
    schema,
)  # fmt: skip

PAGE = (Path(__file__).parents[1] / "docs" / "agents.md").read_text(encoding="utf-8")
NETWORK = ("data=digits", "model=resnet8", "device=cpu", "draw_figures=false", "tracking.enabled=false")
TRAIN = (*NETWORK, "train=smoke", "bits=4,8", "-m")


def say(verb, *arguments):
    """Run a command in this process; returns its exit code and what it wrote."""
    out, err, kept = io.StringIO(), io.StringIO(), sys.argv
    module = importlib.import_module(f"qexp.{verb}")
    sys.argv = [f"qexp.{verb}", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if hasattr(module, "main"):
                code = module.main()
            else:
                code = run_verb(getattr(module, f"{verb.capitalize()}Settings"), module.run, module.__doc__)
    finally:
        sys.argv = kept
    return code, out.getvalue(), err.getvalue()


def events(verb, *arguments, result, code=0):
    """The events of a command, each of its kind; without those of progress, which a slow machine has."""
    done, out, err = say(verb, *arguments, "--json")
    assert done == code, err
    lines = [json.loads(line) for line in out.splitlines()]
    for line in lines:
        schema(result).validate_python(line)
    assert [line["event"] for line in lines].count("result") == (code == 0), out
    return [line for line in lines if line["event"] != "progress"]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder where a network was trained; what the command wrote."""
    folder, before = tmp_path_factory.mktemp("events"), os.getcwd()
    os.chdir(folder)
    try:
        lines = events("train", *TRAIN, result=Written)
    finally:
        os.chdir(before)
    return folder, lines


@pytest.fixture
def here(there, monkeypatch):
    """That folder as the working one, and the checkpoint in it."""
    monkeypatch.chdir(there[0])
    return sorted(Path("runs/trainings").glob("*/epochs/*.safetensors"))[-1]


def of(lines, event, kind=None):
    return [line for line in lines if line["event"] == event and kind in (None, line.get("kind"))]


def test_a_training(there):
    lines = there[1]
    (plan,), (result,) = of(lines, "plan"), of(lines, "result")
    assert plan["jobs"] == 2 and [one["variant"] for one in plan["trainings"][0]["variants"]] == ["W4 int", "W8 int"]
    assert plan["trainings"][0]["stored"] is False and plan["trainings"][0]["epochs"] == len(of(lines, "record", "epoch"))
    last = {line["variant"]: line["prec1"] for line in of(lines, "record", "evaluation")}
    assert last == {row["variant"]: row["prec1"] for row in result["rows"]} and len(last) == 3
    assert all((there[0] / path).is_file() for path in [result["page"], *result["tables"]])


def test_the_same_again(here, there):
    lines = events("train", *TRAIN, result=Written)
    assert of(lines, "plan")[0]["trainings"][0]["stored"] is True and not of(lines, "record")
    assert of(lines, "result")[0]["rows"] == of(there[1], "result")[0]["rows"]


TALKS = """
import logging
import torch
def network(num_classes, in_channels):
    print("printed by a user")
    logging.getLogger("library").warning("warned by a library")
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
"""


def test_what_others_print_is_no_event(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("talks.py").write_text(TALKS)
    words = ("data=digits", "model=custom", "model.factory=talks.py:network", "device=cpu", "tracking.enabled=false")
    code, out, err = say("train", *words, "bits=4", "plan_only=true", "--json")
    assert code == 0, err
    said = [json.loads(line)["event"] for line in out.splitlines()]
    assert [event for event in said if event != "progress"] == ["plan", "result"]
    assert "printed by a user" in err and "warned by a library" in err


def test_a_plan_alone(here):
    before = sorted(Path().rglob("*"))
    (plan, result) = events("train", *TRAIN, "seed=7", "plan_only=true", result=Estimated)
    assert plan["event"] == "plan" and result["trainings"][0]["training"] == plan["trainings"][0]["training"]
    assert sorted(Path().rglob("*")) == before


def test_an_evaluation_with_an_alarm(here):
    """Calibrated on the images that are scored: an alarm."""
    words = ("quant.activation.bits=8", "calibrate.split=test", "calibrate.num_images=32", "evaluate.num_images=64")
    lines = events("evaluate", *NETWORK, f"checkpoint={here}", "name=ptq", "bits=8", *words, result=Written)
    (record,) = (line for line in of(lines, "record", "evaluation") if line["bits"] == 8)
    alarms = [line["text"] for line in of(lines, "alarm") if line["variant"] == record["variant"]]
    assert alarms == record["alarms"] and any("calibrated on" in text for text in alarms)


def test_analyses(here):
    words = (*NETWORK, f"checkpoint={here}", "name=layers", "bits=4", "analyze.split=select", "data.num_select=32")
    cheap = ("analyze.probes=2", "analyze.proxy_images=8", "policy=first_last")
    lines = events("analyze", "task=sensitivity", *words, *cheap, result=Analysed)
    layers = of(lines, "record", "layer")
    assert layers and all(Path(path).is_file() for path in of(lines, "result")[0]["files"])
    assert events("analyze", "task=profile", *NETWORK, f"checkpoint={here}", "name=layers", "bits=4", result=Analysed)


def test_an_export(here):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'qexp[deploy]'")
    small = ("export.runtime=onnxruntime", "export.num_compared=4", "evaluate.num_images=8", "export.cost=false")
    lines = events("export", *NETWORK, f"checkpoint={here}", "name=files", "bits=8", *small, result=Written)
    (export,) = of(lines, "record", "export")
    assert Path(export["file"]).is_file() and export["n"] == 8 and {"fp32", "file"} <= set(export["sizes"])


def test_the_small_commands(here, tmp_path):
    (report,) = events("report", "name=digits", result=Written)
    assert {row["variant"] for row in report["rows"]} == {"fp32", "W4 int", "W8 int"}
    (verified,) = events("report", "name=digits", "verify=true", result=Verified)
    assert verified["equal"] > 0 and verified["wrong"] == []
    (listed,) = events("trainings", result=Stored)
    assert [row["status"] for row in listed["trainings"]] == ["done"]
    assert events("trainings", "remove=incomplete", result=Removed)[0]["removed"] == []
    sent, _ = events("sync", "name=digits", f"uri=sqlite:///{tmp_path}/mlflow.db", result=Text)
    assert sent["name"] == "digits" and sent["rows"] > 0
    checked = events("doctor", result=Checked)[0]
    assert not checked["broken"] and {"name", "state", "text"} == set(checked["checks"][0])
    assert events("init", f"folder={tmp_path / 'conf'}", result=Copied)[0]["files"] > 10
    (merged,) = events("merge", "from=[runs]", f"into={tmp_path / 'all'}", "report=false", result=Merged)
    assert merged["trainings"] >= 1 and merged["evaluations"] >= 3 and merged["written"] > 3 and merged["left_out"] == []
    assert merged["records"]["digits"] > 0
    assert Path(events("ui", "open=false", result=PageNamed)[0]["page"]).is_file()
    assert "name=NAME" in events("report", "--help", result=Text)[0]["text"]
    assert events("train", "--version", result=Text)[0]["text"].startswith("Hydra ")
    assert "bits=" in events("train", "--help", "bits", result=Text)[0]["text"]


@pytest.mark.parametrize(
    ("verb", "arguments", "key"),
    [
        ("train", ("bitz=4",), "bitz"),
        ("train", ("bits=64", *NETWORK), "bits"),
        ("evaluate", ("checkpoint=nowhere.pt", *NETWORK), "checkpoint"),
        ("analyze", ("-m", "task=profile", "bits=4,8", "checkpoint=nowhere.pt"), "-m"),
        ("export", NETWORK, "checkpoint"),
        ("report", ("format=none", "name=x"), "format"),
        ("trainings", ("remove=none",), "remove"),
        ("sync", ("nme=x",), "nme"),
        ("ui", ("name=x", "results_dir=nowhere"), "results_dir"),
        ("doctor", ("quiet=maybe",), "quiet"),
        ("init", ("folder=.",), "folder"),
        ("study", ("name=none",), "name"),
        ("merge", ("into=here",), "from"),
        ("train", ("--nonsense",), "command line"),
    ],
)
def test_mistakes_are_events_too(verb, arguments, key):
    Path("file").write_text("")
    (error,) = events(verb, *arguments, result=Text, code=2)
    assert error["exit_code"] == 2 and key in [mistake["key"] for mistake in error["wrong"]] and error["message"]
    code, out, err = say(verb, *arguments)
    assert code == 2 and not out and error["message"].splitlines()[0] in err, "a person reads the same"


def test_quiet_prints_results_alone(here):
    code, out, err = say("train", *TRAIN, "quiet=true", "fresh=true", "name=quiet", "runs_dir=quiet_runs")
    assert code == 0 and not err
    assert out.splitlines() == ["tables: results/quiet/", "page: results/quiet/report.html", "index: results/index.html"]
    code, out, err = say("report", "name=digits", "quiet=true")
    assert out.splitlines()[0] == "tables and figures: results/digits/" and len(out.splitlines()) == 3
    loud = [line["event"] for line in events("train", *TRAIN, "quiet=true", "name=again", result=Written)]
    assert loud == ["result"]


def test_quiet_and_json_leave_keys_as_they_are(here):
    """A job that is told to be quiet is the job that is not."""

    assert say("train", *TRAIN)[0] == 0
    assert say("train", *TRAIN, "quiet=true", "--json")[0] == 0
    rows = [json.loads(line) for line in Path("runs/journal/digits.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows[-2:]] == ["sweep", "repeat"], "jobs of the same keys"


def test_the_page_lists_what_there_is():
    assert all(f"`{verb}`" in PAGE for verb in VERBS)
    models = [one for one in vars(schemas).values() if isinstance(one, type) and issubclass(one, schemas.Said)]
    names = {name for model in models for name in model.model_fields}
    assert len(names) > 50 and sorted(name for name in names if f"`{name}`" not in PAGE and name != "event") == []
