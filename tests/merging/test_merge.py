"""Stores on disk that become one: in any order, refused where they disagree, finished after a kill, usable as any store."""

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qexp import merge, sync
from qexp.base.faults import VARIABLE
from qexp.base.keyvalue import run_verb

NOLOAD = "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"


def give(capsys, *words, module=merge, kind=merge.MergeSettings):
    """Run a verb in this process; its exit code and what it said."""
    kept, sys.argv = sys.argv, ["qexp", *map(str, words)]
    try:
        code = run_verb(kind, module.run, module.__doc__)
    finally:
        sys.argv = kept
    said = capsys.readouterr()
    return code, said.out + said.err


def merged(capsys, sources, into, *words):
    code, said = give(capsys, f"from=[{','.join(map(str, sources))}]", f"into={into}", "report=false", *words)
    assert code == 0, said
    return said


@settings(max_examples=3, suppress_health_check=list(HealthCheck))
@given(owners=st.lists(st.sets(st.sampled_from("abc"), min_size=1), min_size=2, max_size=3), number=st.integers(0, 10**6))
def test_any_overlap_in_any_order(owners, number, bench, content, capsys, tmp_path):
    folder = tmp_path / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    for training, stores in enumerate(owners):
        for store in stores:
            bench.write_training(folder / store / "runs", f"t{training}", 10**6 * (training + 1), epochs=1, variants=2)
    sources = [path for path in sorted(folder.iterdir())]
    before = [content(path) for path in sources]
    together = []
    for order in permutations(sources):
        into = tmp_path / f"{number}-{'-'.join(path.name for path in order)}"
        shutil.rmtree(into, ignore_errors=True)
        merged(capsys, order, into)
        together.append(content(into))
    assert all(one == together[0] for one in together)
    assert [content(path) for path in sources] == before, "sources are only read"
    assert {path.split("/")[2] for path in together[0] if path.startswith("runs/trainings/")} == {
        f"t{n}" for n in range(len(owners))
    }
    records = [line for line in together[0]["runs/journal/exp.jsonl"].splitlines() if b'"kind":"record"' in line]
    assert len(records) == 2 * len(owners), "two variants, each once"


def test_a_store_that_grew_is_merged_again(store, content, capsys, tmp_path):
    sources = [store("a", "one"), store("b", "two", start_ms=5_000_000)]
    merged(capsys, sources, tmp_path / "all")
    assert "nothing to do" in merged(capsys, sources, tmp_path / "all")
    store("a", "three", start_ms=2_000_000)
    assert "nothing to do" not in merged(capsys, sources, tmp_path / "all")
    merged(capsys, sources, tmp_path / "afresh")
    assert content(tmp_path / "all") == content(tmp_path / "afresh")
    merged(capsys, [tmp_path / "all" / "runs"], tmp_path / "copy")
    assert content(tmp_path / "copy") == content(tmp_path / "all"), "a folder of runs alone is a source"


def refused(capsys, sources, into):
    code, said = give(capsys, f"from=[{','.join(map(str, sources))}]", f"into={into}", "report=false")
    assert code == 2 and not Path(into).exists(), said
    return said


@pytest.mark.parametrize("where", ["journal/exp.jsonl", "trainings/one/variants/key01.jsonl"])
def test_other_numbers_are_named_and_nothing_is_written(where, store, change, capsys, tmp_path):
    sources = [store("a", "one"), store("b", "one")]
    change(sources[1] / "runs" / where, prec1=12.5, digest="other")
    said = refused(capsys, sources, tmp_path / "all")
    assert "key01" in said and "after epoch 1" in said and "prec1 12.5" in said
    assert f" in {sources[0]}" in said and f" in {sources[1]}" in said


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("epochs/0001.safetensors", b"other weights"),
        ("predictions/key01/0002.safetensors", b"other predictions"),
        ("training.json", b'{"identity": {"training": "another"}}'),
        ("train.jsonl", b'{"epoch": 1, "train_loss": 9.0}\n'),
    ],
)
def test_another_training_under_the_same_hash(file, data, store, capsys, tmp_path):
    sources = [store("a", "one", "two"), store("b", "one")]
    (sources[1] / "runs/trainings/one" / file).write_bytes(data)
    for order in permutations(sources):
        said = refused(capsys, order, tmp_path / "all")
        assert "training one" in said and all(f" in {source}" in said for source in sources)


def test_what_another_processor_rounds_otherwise_is_no_conflict(store, change, content, capsys, tmp_path, bench):
    sources = [store("a", "one"), store("b", "one", start_ms=500)]
    loss = bench.record_of("one", 1, 2, 0).loss * (1 + 1e-6)
    rounded = {"epoch": 2, "loss": loss, "digest": "rounded"}
    change(sources[1] / "runs/journal/exp.jsonl", epoch=2, loss=loss)
    change(sources[1] / "runs/trainings/one/variants/key01.jsonl", **rounded)
    refused(capsys, sources, tmp_path / "all")  # the same processor
    change(sources[1] / "runs/trainings/one/variants/key01.jsonl", **rounded, computed={**bench.HERE, "cpu": "another"})
    (sources[1] / "runs/trainings/one/predictions/key01/0002.safetensors").write_bytes(b"rounded")
    for number, order in enumerate(permutations(sources)):
        merged(capsys, order, tmp_path / str(number))
    assert content(tmp_path / "0") == content(tmp_path / "1")
    lines = (tmp_path / "0/runs/trainings/one/variants/key01.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] == loss, "the later one counts"
    assert (tmp_path / "0/runs/trainings/one/predictions/key01/0002.safetensors").read_bytes() == b"rounded"


def test_the_training_that_got_furthest_says_where_it_goes_on(store, content, capsys, tmp_path):
    sources = [store("a", "one"), store("b", "one")]
    folder = sources[1] / "runs/trainings/one"
    (folder / "training.json").write_text(json.dumps({**json.loads((folder / "training.json").read_text()), "status": "running"}))
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text().splitlines()[0] + "\n")
    (folder / "epochs/0002.safetensors").unlink()
    for name in ("last.pt", "PREEMPTED"):
        (folder / name).write_text("unfinished")
    merged(capsys, sources[1:], tmp_path / "all")
    assert (tmp_path / "all/runs/trainings/one/last.pt").exists()
    merged(capsys, sources, tmp_path / "all")
    folders = (path / "runs/trainings/one" for path in (tmp_path / "all", sources[0]))
    assert content(next(folders)) == content(next(folders)), "done, with nothing to go on from"


FAULTS = ("merge.staged", "merge.staged:7", "merge.renamed", "merge.renamed:9", "file.written", "file.renamed")


@pytest.mark.parametrize("fault", FAULTS)
def test_killed_and_given_again(fault, store, content, capsys, tmp_path):
    sources = [store("a", "one", "two"), store("b", "two", "three", start_ms=-1_000_000)]
    merged(capsys, sources, tmp_path / "whole")
    words = [sys.executable, "-m", "qexp.merge", f"from=[{sources[0]},{sources[1]}]", f"into={tmp_path / 'all'}", "report=false"]
    killed = subprocess.run(words, env=os.environ | {VARIABLE: fault}, capture_output=True, text=True, timeout=900)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert content(tmp_path / "all") != content(tmp_path / "whole") or fault == "file.renamed"
    merged(capsys, sources, tmp_path / "all")
    assert content(tmp_path / "all") == content(tmp_path / "whole")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("whose", ["source", "target"])
def test_a_store_at_work_is_refused(whose, store, content, capsys, tmp_path):
    source, target = store("a", "one"), store("all", "one")
    lock = {"source": source, "target": target}[whose] / "runs/.locks/one.lock"
    lock.parent.mkdir()
    before = content(target)
    program = f"from filelock import FileLock; lock = FileLock({str(lock)!r}); lock.acquire(); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        code, said = give(capsys, f"from=[{source}]", f"into={target}", "report=false")
        assert code == 2 and "a process works on training one" in said and content(target) == before
        holder.communicate("\n", timeout=900)
    merged(capsys, [source], target)


def test_what_is_no_store(store, capsys, tmp_path):
    source = store("a", "one")
    (tmp_path / "empty").mkdir()
    for words, expected in (
        (["from=[]"], "at least one folder"),
        ([f"from=[{tmp_path / 'empty'}]"], "a folder that holds runs/ or results/"),
        ([f"from=[{tmp_path / 'nowhere'}]"], "There is no such folder"),
        ([f"from=[{source},{source}/runs]"], "named once"),
    ):
        code, said = give(capsys, *words, f"into={tmp_path / 'all'}")
        assert code == 2 and expected in said and not (tmp_path / "all").exists()
    code, said = give(capsys, f"from=[{source}]", f"into={source}")
    assert code == 2 and "leave it out of from" in said
    code, said = give(capsys, f"from=[{source}]", f"into={source / 'runs'}")
    assert code == 2 and f"into={source}" in said
    (source / "runs/trainings/one/training.json").write_text("torn")
    code, said = give(capsys, f"from=[{source}]", f"into={tmp_path / 'all'}")
    assert code == 2 and "training.json that can be read" in said


def test_results_that_nothing_makes_again(capsys, tmp_path):
    for machine, text in (("a", "1"), ("b", "2")):
        for name in (machine, "both"):
            (tmp_path / machine / name).mkdir(parents=True)
            (tmp_path / machine / name / "table.csv").write_text(text if name == "both" else "own")
    sources = [tmp_path / "a", tmp_path / "b"]
    assert "results of both, table.csv" in refused(capsys, sources, tmp_path / "all")
    (tmp_path / "b" / "both" / "table.csv").write_text("1")
    merged(capsys, sources, tmp_path / "all")
    assert sorted(path.parent.name for path in (tmp_path / "all/results").glob("*/table.csv")) == ["a", "b", "both"]


def test_exported_files(store, content, capsys, tmp_path):
    sources = [store("a", "one"), store("b", "two")]
    for source in sources:
        for name, data in (("network.onnx", "same"), ("example.npz", source.name), ("network.pt2", source.name)):
            path = source / "runs/exports/exp/W8" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(data)
    for number, order in enumerate(permutations(sources)):
        merged(capsys, order, tmp_path / str(number))
    assert content(tmp_path / "0") == content(tmp_path / "1")
    folder = tmp_path / "0/runs/exports/exp/W8"
    assert (folder / "example.npz").read_text() == (folder / "network.pt2").read_text(), "both of one store"


def rows_of(path):
    with open(path) as handle:
        return [{key: text for key, text in row.items() if key not in ("time_ms", "sweep")} for row in csv.DictReader(handle)]


@pytest.mark.slow
@pytest.mark.filterwarnings(NOLOAD)
def test_a_sweep_in_two_parts_is_the_sweep(cli, tiny, capsys, tmp_path, monkeypatch):
    # Both machines train seed 0, bit for bit alike, and measure its 4 bits.
    parts = {
        "one": ("bits=4,3,8", "seed=0,1"),
        "a": ("bits=4,3", "seed=0"),
        "b": ("bits=4,8", "seed=0"),
        "c": ("bits=4,3,8", "seed=1"),
    }
    for name, words in parts.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert cli(*tiny, "name=x", *words, "-m").code == 0
    monkeypatch.chdir(tmp_path)
    code, said = give(capsys, "from=[c,a,b]", "into=all")
    assert code == 0 and "x: 8 records" in said, said  # a float network and the 4 bits of seed 0 were measured twice, alike
    for file in ("table.csv", "epochs.csv", "pairs.csv", "seeds.csv"):
        key = lambda row: sorted(row.items())  # noqa: E731  (trainings stand in the order in which they began)
        assert sorted(rows_of(tmp_path / "all/results/x" / file), key=key) == sorted(
            rows_of(tmp_path / "one/results/x" / file), key=key
        )
    assert rows_of(tmp_path / "all/results/x/table.csv")

    send = ("runs_dir=all/runs",)
    assert give(capsys, *send, module=sync, kind=sync.SyncSettings)[0] == 0
    counts = mlflow_counts(tmp_path / "all/runs/mlflow.db")
    assert counts["runs"] == 2 + 6 and counts["duplicates"] == 0
    assert "nothing was missing" in give(capsys, *send, module=sync, kind=sync.SyncSettings)[1]

    monkeypatch.chdir(tmp_path / "all")
    again = cli(*tiny, "name=x", "bits=4,3,8", "seed=0,1", "-m")
    assert again.code == 0 and again.out.count("nothing to do, every number is stored") == 2, again.out + again.err
    more = cli(*tiny, "name=x", "bits=2", "seed=0", "-m")
    assert more.code == 0 and "epoch 1" in more.out and "(1 stored)" in more.out, "only evaluated"
    monkeypatch.chdir(tmp_path)
    assert give(capsys, "from=[a,b,c]", "into=all", "report=false")[0] == 0  # what was done there stays
    assert give(capsys, *send, module=sync, kind=sync.SyncSettings)[0] == 0
    counts = mlflow_counts(tmp_path / "all/runs/mlflow.db")
    assert counts["runs"] == 2 + 6 + 1 and counts["duplicates"] == 0


def mlflow_counts(path):
    """Runs in MLflow's store, and how many keys of runs or points of metrics stand there twice."""
    with sqlite3.connect(path) as connection:
        ask = lambda text: connection.execute(text).fetchone()[0]  # noqa: E731
        twice = "select count(*) from (select 1 from {} group by {} having count(*) > 1)"
        return {
            "runs": ask("select count(*) from runs"),
            "duplicates": ask(twice.format("tags where key = 'qexp.run'", "value"))
            + ask(twice.format("metrics", "run_uuid, key, step")),
        }
