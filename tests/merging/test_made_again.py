"""What is made again or rounded otherwise: exported files, analyses and their results, rounding in several merges."""

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import permutations

import pytest

from qexp.base.errors import UserErrors
from qexp.base.faults import VARIABLE
from qexp.merging.merge import merge


def merged(sources, into):
    return merge(list(map(str, sources)), str(into), results=False)


def refused(sources, into):
    with pytest.raises(UserErrors) as refusal:
        merged(sources, into)
    assert not into.exists()
    return str(refusal.value)


def test_what_another_processor_rounds_otherwise_is_none_in_two_merges_either(store, change, content, tmp_path, bench):
    sources = [store("a", "one"), store("b", "one", start_ms=500), store("c", "one", start_ms=900)]
    (sources[1] / "runs/journal/exp.jsonl").rename(sources[1] / "runs/journal/other.jsonl")  # `exp` has the time of a, not of b
    rounded = {"epoch": 2, "loss": bench.record_of("one", 1, 2, 0).loss * (1 + 1e-6)}
    change(sources[2] / "runs/journal/exp.jsonl", **rounded)
    computed = {**bench.HERE, "cpu": "another"}
    change(sources[2] / "runs/trainings/one/variants/key01.jsonl", **rounded, digest="rounded", computed=computed)
    (sources[2] / "runs/trainings/one/predictions/key01/0002.safetensors").write_bytes(b"rounded")
    merged(sources, tmp_path / "at once")
    merged(sources[:2], tmp_path / "all")
    merged(sources[2:], tmp_path / "all")
    assert content(tmp_path / "all") == content(tmp_path / "at once")


def write_analysis(folder, cpu, scores, bench):
    """`sensitivity.jsonl` of a checkpoint: what it was computed on, and a number for each key."""
    reference = {"prec1": 50.0, "loss": 1.0, "digest": cpu, "computed": {**bench.HERE, "cpu": cpu}}
    rows = [{"kind": "reference", "key": "float", "values": reference}]
    rows += [{"kind": "loss", "key": key, "values": value} for key, value in scores.items()]
    path = folder / "runs/checkpoints/abc/sensitivity.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_analyses_of_two_processors_are_those_of_one_within_rounding(content, tmp_path, bench):
    here = write_analysis(tmp_path / "a", "AMD", {"k1": 0.0123456, "k2": 0.02, "k3": {"n": 1000, "n10": 7}}, bench)
    scores = {"k1": 0.0123455, "k2": 0.0200001, "k3": {"n": 1000, "n10": 9}, "k4": 1.0}
    for wrong in ({"k2": 7.5}, {"k3": {"n": 1000, "n10": 13}}):
        there = write_analysis(tmp_path / "b", "Intel", scores | wrong, bench)
        said = refused([here, there], tmp_path / "all")
        assert f"loss {next(iter(wrong))}" in said and "checkpoint abc" in said
    write_analysis(there, "Intel", scores, bench)
    for number, order in enumerate(permutations([here, there])):
        merged(order, tmp_path / str(number))
        assert merged(order, tmp_path / str(number)).num_written == 0
    assert content(tmp_path / "0") == content(tmp_path / "1")
    kept = (tmp_path / "0/runs/checkpoints/abc/sensitivity.jsonl").read_text().splitlines()
    values = {row["key"]: row["values"] for row in map(json.loads, kept)}
    assert values["float"]["computed"]["cpu"] == "Intel" and values == {**scores, "float": values["float"]}


def test_results_of_analyses_that_differ_are_left_out(store, tmp_path):
    sources = [store("a", "one"), store("b", "two")]
    for source in sources:
        (source / "results/abc").mkdir(parents=True)
        (source / "results/abc/sensitivity.csv").write_text(source.name)
        (source / "results/abc/same.csv").write_text("same")
    for number, order in enumerate(permutations(sources)):
        assert merged(order, tmp_path / str(number)).left_out == ("abc/sensitivity.csv",)
        assert [path.name for path in (tmp_path / str(number) / "results/abc").iterdir()] == ["same.csv"]
    assert "results of abc, sensitivity.csv" in refused([sources[0], sources[1] / "results"], tmp_path / "all")


def test_exported_files_of_two_seeds_are_those_of_one(store, content, tmp_path):
    sources = [store("a", "one"), store("b", "two")]
    for source, names in zip(sources, (("network.onnx", "example.npz"), ("network.onnx", "network.tflite")), strict=True):
        for name in names:
            path = source / "runs/exports/exp/W8" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of {source.name}")
    for number, order in enumerate(permutations(sources)):
        assert merged(order, tmp_path / str(number)).left_out == ("exports/exp/W8",)
        assert merged(order, tmp_path / str(number)).num_written == 0
    assert content(tmp_path / "0") == content(tmp_path / "1")
    one = content(tmp_path / "0/runs/exports")
    assert one in [content(source / "runs/exports") for source in sources]
    for source in sources:  # whichever it is, a store that has the other gets all of it, and nothing else
        into = shutil.copytree(source, tmp_path / f"into {source.name}")
        merged([other for other in sources if other != source], into)
        assert content(into / "runs/exports") == one


@pytest.mark.parametrize("fault", ["merge.renamed", "merge.renamed:2"])
def test_exported_files_of_a_killed_merge_are_of_one_network(fault, store, content, tmp_path):
    sources = [store("a"), store("b")]
    for source in sources:
        folder = source / "runs/exports/exp/W8"
        folder.mkdir(parents=True)
        for name in ("example.npz", "network.onnx", "network.tflite"):
            (folder / name).write_text(f"{name} of {source.name}")
        (source / "runs/journal").mkdir()
    merged(sources, tmp_path / "whole")
    other = next(path for path in sources if content(path / "runs/exports") != content(tmp_path / "whole/runs/exports"))
    into = shutil.copytree(other, tmp_path / "all")
    words = [sys.executable, "-m", "qexp.merge", f"from=[{sources[0]},{sources[1]}]", f"into={into}", "report=false"]
    killed = subprocess.run(words, env=os.environ | {VARIABLE: fault}, capture_output=True, text=True, timeout=900)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert content(into) not in (content(other), content(tmp_path / "whole"))
    merged(sources, into)
    assert content(into / "runs/exports") == content(tmp_path / "whole/runs/exports")
