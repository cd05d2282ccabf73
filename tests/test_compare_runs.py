"""scripts/compare_runs.py on small folders: what it takes for equal, what for different, and that nothing is never equal."""

import json
import runpy
import shutil
import sqlite3
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_runs.py"
TRAINING = "runs/trainings/0123abcd"
PAGE = """<html><style>b {}</style><table><tr><td>onnxruntime</td><td>fp32</td><td>1</td><td>0.2</td></tr>
<tr><td>W4 &amp; int</td><td>91.5</td></tr></table><svg>latency 0.2</svg></html>"""
SCHEMA = """
create table experiments (experiment_id, name);
create table runs (run_uuid, experiment_id, name, status, lifecycle_stage, start_time);
create table params (run_uuid, key, value);
create table tags (run_uuid, key, value);
create table metrics (run_uuid, key, value real, step, is_nan, timestamp);
"""


@pytest.fixture
def compare(monkeypatch, capsys):
    """Run the script on `before` and `after`: its exit code and what it said."""
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", "before", "after", *arguments])
        return main(), capsys.readouterr().out

    return run


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def message(*fields):
    """A protobuf message of these (number, bytes)."""
    return b"".join(varint(number << 3 | 2) + varint(len(content)) + content for number, content in fields)


def onnx(node=b"conv", weights=b"w" * 200, producer=b"qexp"):
    return b"\x08\x0a" + message((2, producer), (7, message((1, node), (5, weights), (2, b"name"))))


def write_output(folder, moment):
    """What a command might write at a moment: equal but for what LEFT_OUT names."""
    root = Path(folder).resolve()
    for name in (
        f"{TRAINING}/epochs",
        f"runs/mlartifacts/exp/run{moment}/artifacts",
        "runs/journal",
        "runs/exports",
        "results/exp",
    ):
        (root / name).mkdir(parents=True)
    row = {"kind": "record", "variant": "W4 int", "prec1": 91.5, "alarms": [], "logit_sqnr_db": float("inf")}
    rows = [row | {"time_ms": moment}, {"kind": "files", "paths": [f"{root}/results/exp/table.csv"], "process": {"pid": moment}}]
    (root / "runs/journal/exp.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    (root / TRAINING / "training.json").write_text(
        json.dumps({"hash": "0123abcd", "created": str(moment), "ranks": [{"step": 0}]})
    )
    (root / TRAINING / f"{moment}.lock").touch()
    save_file({"weight": np.arange(6, dtype=np.float32)}, root / TRAINING / "epochs/0001.safetensors", {"made": "by fit"})
    (root / f"runs/mlartifacts/exp/run{moment}/artifacts/config.json").write_text('{"bits": 4}')
    (root / "runs/exports/network.onnx").write_bytes(onnx())
    with zipfile.ZipFile(root / "runs/exports/example.npz", "w") as archive:
        archive.writestr(zipfile.ZipInfo("logits.npy", (2000 + moment, 1, 1, 0, 0, 0)), b"12")
    (root / "results/exp/table.csv").write_text(f'variant,prec1,time_ms,label\nW4 int,91.5,{moment},"two, words"\n')
    made = f"- `python -m qexp.train` (2026-01-0{moment} 00:00 UTC, host{moment}, revision {moment}; qexp 0.{moment})"
    (root / "results/exp/table.md").write_text(f"| W4 int | 91.5 |\n| onnxruntime | fp32 | 1 | 0.{moment} |\n{made}\n")
    (root / "results/exp/report.html").write_text(PAGE.replace("0.2", f"0.{moment}"))
    (root / "results/exp/prec1.png").write_bytes(b"picture")
    write_mlflow(root / "runs/mlflow.db", moment)


def write_mlflow(path, moment):
    with closing(sqlite3.connect(path)) as store:
        store.executescript(SCHEMA)
        store.execute("insert into experiments values (1, 'exp')")
        for run, start in ((f"run{moment}", moment), (f"parent{moment}", 0)):
            store.execute("insert into runs values (?, 1, 'W4 int', 'FINISHED', 'active', ?)", (run, start))
            store.execute("insert into tags values (?, 'qexp.run', ?)", (run, run[:-1]))
        store.execute("insert into params values (?, 'bits', '4')", (f"run{moment}",))
        for key, text in (("mlflow.parentRunId", f"parent{moment}"), ("qexp.pid", str(moment)), ("qexp.device", "cpu")):
            store.execute("insert into tags values (?, ?, ?)", (f"run{moment}", key, text))
        for key, value in (("prec1", 91.5), ("fp32_b1_median_ms", moment)):
            store.execute("insert into metrics values (?, ?, ?, 1, 0, ?)", (f"run{moment}", key, value, moment))
        store.commit()


@pytest.fixture
def outputs(tmp_path):
    """Two outputs that are equal, written at two moments."""
    for folder, moment in (("before", 1), ("after", 2)):
        write_output(tmp_path / folder, moment)
    return tmp_path / "after"


def test_equal_numbers_pass_and_are_counted(compare, outputs):
    code, out = compare()
    assert code == 0, out
    counts = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(".")}
    assert set(counts) == {".csv", ".db", ".html", ".json", ".jsonl", ".md", ".npz", ".onnx", ".png", ".safetensors"}
    assert all(int(files) > 0 and int(values) > 0 and different == "0" for files, values, different in counts.values())
    assert "left out: 2 files *.lock: empty" in out and out.splitlines()[-1].endswith(" 0 differences")


def text(old, new):
    """A change of a text file."""
    return lambda path: path.write_text(changed(path.read_text(), old, new))


def changed(content, old, new):
    assert old in content
    return content.replace(old, new)


def sql(command):
    def change(path):
        with closing(sqlite3.connect(path)) as store:
            assert store.execute(command).rowcount == 1
            store.commit()

    return change


def byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def member(path):
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("logits.npy", b"13")


DIFFERENT = {
    "a number of a table": ("results/exp/table.csv", text("91.5", "91.50000001"), "row[0].prec1"),
    "a label of a table": ("results/exp/table.csv", text("W4 int", "W4"), 'row[0].variant: "W4 int" -> "W4"'),
    "a row more": ("results/exp/table.csv", text('words"\n', 'words"\nW8,1,2,3\n'), "row.length: 1 -> 2"),
    "a column less": ("results/exp/table.csv", text("label", "labels"), "row[0].label: missing"),
    "a number of the journal": ("runs/journal/exp.jsonl", text("91.5", "91.6"), "row[0].prec1: 91.5 -> 91.6"),
    "an alarm": ("runs/journal/exp.jsonl", text("[]", '["odd"]'), "row[0].alarms.length: 0 -> 1"),
    "an infinite number": ("runs/journal/exp.jsonl", text("Infinity", "null"), "logit_sqnr_db: Infinity -> null"),
    "another type": (f"{TRAINING}/training.json", text('"step": 0', '"step": 0.0'), "ranks[0].step: 0 -> 0.0"),
    "a weight": (f"{TRAINING}/epochs/0001.safetensors", byte, "tensor weight"),
    "a header": (f"{TRAINING}/epochs/0001.safetensors", lambda path: path.write_bytes(
        changed(path.read_bytes(), b"by fit", b"by you")), 'header.made: "by fit" -> "by you"'),
    "a missing file": (f"{TRAINING}/epochs/0001.safetensors", Path.unlink, "0001.safetensors: missing"),
    "a renamed training": (TRAINING, lambda path: path.rename(path.with_name("f")), f"{TRAINING}/training.json: missing"),
    "one training more": (TRAINING, lambda path: shutil.copytree(path, path.with_name("f")), "f/training.json: only after"),
    "a weight of an export": ("runs/exports/network.onnx", lambda path: path.write_bytes(onnx(weights=b"v")), "weights"),
    "a node of an export": ("runs/exports/network.onnx", lambda path: path.write_bytes(onnx(node=b"add")), "nodes"),
    "an export's producer": ("runs/exports/network.onnx", lambda path: path.write_bytes(onnx(producer=b"x")), "the rest"),
    "an array": ("runs/exports/example.npz", member, "logits.npy"),
    "a line of Markdown": ("results/exp/table.md", text("| 91.5", "| 91.6"), "text[0]"),
    "a cell of the page": ("results/exp/report.html", text("91.5", "91.6"), "| W4 & int | 91.5 |"),
    "a picture": ("results/exp/prec1.png", byte, "prec1.png: bytes"),
    "an artifact": ("runs/mlartifacts/exp/run2/artifacts/config.json", text("4", "8"), "<exp/run/1>/artifacts/config.json: bits"),
    "a metric": ("runs/mlflow.db", sql("update metrics set value = 91.6 where key = 'prec1'"), "metric prec1 step 1: [91.5]"),
    "a step": ("runs/mlflow.db", sql("update metrics set step = 2 where key = 'prec1'"), "metric prec1 step 1: missing"),
    "a parameter": ("runs/mlflow.db", sql("update params set value = '8'"), "exp/run/1: parameter bits"),
    "a tag": ("runs/mlflow.db", sql("update tags set value = 'cuda' where key = 'qexp.device'"), "tag qexp.device"),
    "a parent": ("runs/mlflow.db", sql("update tags set value = 'run2' where key like 'mlflow.%'"), "exp/parent/1"),
}  # fmt: skip


@pytest.mark.parametrize("name, change, message", DIFFERENT.values(), ids=DIFFERENT)
def test_one_change_fails_and_is_named(compare, outputs, name, change, message):
    change(outputs / name)
    code, out = compare()
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith("DIFFERENT") and message in line], out
    assert not out.splitlines()[-1].endswith(" 0 differences")


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("results/exp/table.csv", lambda p: p.write_text('n,variant,prec1,label\n9,W4 int,91.5,"two, words"'), "table.csv n"),
        ("runs/journal/exp.jsonl", text('"variant"', '"seed": 0, "variant"'), "exp.jsonl seed"),
        ("results/exp", lambda path: (path / "more.csv").write_text("n\n1\n"), "file results/exp/more.csv"),
    ],
    ids=["column", "key", "file"],
)  # fmt: skip
def test_what_is_new_is_listed_and_no_failure(compare, outputs, name, change, message):
    change(outputs / name)
    code, out = compare()
    assert code == 0 and f"new, no failure: {message}, 1 times" in out, out


def test_no_more_differences_are_printed_than_asked_for(compare, outputs):
    (outputs / "runs/journal/exp.jsonl").unlink()
    byte(outputs / "results/exp/prec1.png")
    code, out = compare("--show", "1")
    assert code == 1 and out.count("DIFFERENT") == 1 and out.splitlines()[-1].endswith(" 2 differences")


def test_nothing_is_never_equal(compare, tmp_path):
    for name in ("before/runs", "before/results", "after/runs", "after/results"):
        (tmp_path / name).mkdir(parents=True)
    code, out = compare()
    assert code == 2 and "NOTHING was compared" in out
    (tmp_path / "before/runs/a.lock").touch()
    assert compare()[0] == 2


def test_a_folder_without_runs_is_refused(compare, outputs, capsys):
    shutil.rmtree(outputs / "results")
    with pytest.raises(SystemExit) as ended:
        compare()
    assert ended.value.code == 2 and "after has no results" in capsys.readouterr().err


def test_it_judges_any_version():
    assert "import qexp" not in SCRIPT.read_text() and "from qexp" not in SCRIPT.read_text()
