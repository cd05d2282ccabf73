"""Do two versions of the code give the same numbers? Compares what the same commands wrote with each, value by value.

    python scripts/compare_runs.py BEFORE AFTER [--show N]

BEFORE and AFTER are folders that hold `runs/` and `results/`. Run the same commands in both, on one machine, with
OMP_NUM_THREADS=1. Every file of BEFORE must be in AFTER, under the same name, which often is a hash, and every value of it equal:
each cell of CSV, key of JSON and JSON lines, tensor and header of safetensors, member of an archive (npz, pt, pt2), line of
Markdown and HTML, byte of ONNX and pictures, and of MLflow's store each parameter, metric and tag of a run. Columns, keys and
reports that only AFTER has are listed as new, no failure; a new file where names are hashes is one. `LEFT_OUT` is left out.

Exit code: 0 all is equal, 1 something differs, 2 nothing was compared or a folder is missing. Imports no qexp,
so that it judges any version.
"""

import argparse
import csv
import hashlib
import html
import io
import json
import re
import sqlite3
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

FOLDERS = ("runs", "results")
BY_CONTENT = ("runs/trainings/*", "runs/checkpoints/*", "runs/exports/*")  # nothing may be new here

# What must differ from run to run, and why. Nothing else is left out.
LEFT_OUT = {
    "files": {
        "*.lock": "empty, left by whoever waited",
        "*.tmp": "left by a process that was killed",
        "runs/jobs/*": "Hydra's notes, in folders named by the clock; settings are compared in training.json and config.json",
        "runs/journal/*.mlflow.json": "how far MLflow was fed: a place in bytes and an address",
        "*/prec1_by_cost.*": "a picture of latencies",
    },
    "names": {  # of columns, keys, metrics and tags
        "time_ms": "a moment", "created": "a moment",
        "sweep": "named by the clock", "qexp.sweep": "named by the clock",
        "process": "host, id and start of a process", "qexp.process_start": "of a process", "pid": "of a process",
        "qexp.pid": "of a process", "host": "of a process", "qexp.host": "of a process",
        "git": "a revision", "qexp.git": "a revision", "mlflow.source.git.commit": "a revision",
        "versions": "qexp's own may differ", "qexp.version.*": "qexp's own may differ",
        "traceback": "names lines of the code",
        "seconds": "a duration", "*images_per_s": "a speed", "speedup": "a ratio of latencies",
        "*median_ms": "a latency", "low_ms": "a latency", "high_ms": "a latency",
        "*peak_bytes": "memory of a timed process, which the allocator varies",
    },
    "text": {  # in Markdown and HTML
        r"\(\d{4}-\d\d-\d\d [^()]* UTC, [^()]*\)": "when, where and by which revision and versions a command ran",
        r"\| (Versions|Revision) \|.*": "qexp's own version and the revision",
        r"\| (onnxruntime|openvino|torch)[^|]*( \|)? (fp32|quantized) \| \d+ \|.*": "latencies, speeds, memory",
    },
}  # fmt: skip


@dataclass
class Side:
    """One of the two outputs."""

    root: Path
    runs: dict[str, str] = field(default_factory=dict)  # MLflow's id of a run -> experiment and `qexp.run`

    def files(self, skipped: Counter) -> dict[str, Path]:
        """Name within the side -> file; MLflow's folders are named by the run that they hold."""
        named = {}
        for path in sorted(path for folder in FOLDERS for path in (self.root / folder).rglob("*") if path.is_file()):
            name = path.relative_to(self.root).as_posix()
            pattern = matching(name, "files")
            if pattern:
                skipped[f"files {pattern}: {LEFT_OUT['files'][pattern]}"] += 1
                continue
            for run_id, run in self.runs.items():
                name = name.replace(run_id, f"<{run}>")
            named[name] = path
        return named


def matching(name: str, what: str) -> str | None:
    """The pattern of LEFT_OUT that a name falls under."""
    return next((pattern for pattern in LEFT_OUT[what] if fnmatchcase(name, pattern)), None)


def leaves(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Place -> value of whatever JSON holds; lists give their length too, as an item more is a difference."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not matching(key, "names"):
                yield from leaves(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        yield f"{place}.length", len(value)
        for number, item in enumerate(value):
            yield from leaves(item, f"{place}[{number}]")
    else:
        yield place, value


def read_rows(path: Path, side: Side) -> dict[str, object]:
    """Of CSV each cell, of JSON and JSON lines each key."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return dict(leaves(json.loads(text)))
    rows = (
        csv.DictReader(io.StringIO(text, newline=""))
        if path.suffix == ".csv"
        else map(json.loads, filter(None, text.split("\n")))
    )
    return dict(leaves({"row": list(rows)}))


def read_text(path: Path, side: Side) -> dict[str, object]:
    """Lines of words and numbers; a table's row is one line in Markdown and in HTML, and pictures are compared as files."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        text = re.sub(r"(?s)<(svg|style|script)\b.*?</\1>", "", text)
        text = re.sub(r"</t[dh]>|</dt>", " | ", re.sub(r"<tr[^>]*>|<dt>", "| ", text))
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
    for pattern in LEFT_OUT["text"]:
        text = re.sub(pattern, "<left out>", text)
    return dict(leaves({"text": text.splitlines()}))


def read_safetensors(path: Path, side: Side) -> dict[str, object]:
    """Tensors by their bytes and the header; the order of keys in the header is no content."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    values = dict(leaves(header.pop("__metadata__", {}), "header")) | {"tensors": len(header)}
    for name, about in header.items():
        first, end = about["data_offsets"]
        values[f"tensor {name}"] = f"{about['dtype']} {about['shape']} {digest(data[start + first : start + end])}"
    return values


def read_zip(path: Path, side: Side) -> dict[str, object]:
    """Members by their bytes: the archive itself holds times."""
    with zipfile.ZipFile(path) as archive:
        members = {name: digest(archive.read(name)) for name in archive.namelist()}
    return {"members": len(members), **members}


def read_onnx(path: Path, side: Side) -> dict[str, object]:
    """All bytes, and those of the nodes, the weights and the rest, so that a difference says where it is."""
    data = path.read_bytes()
    parts = {1: b"", 5: b"", 0: b""}  # GraphProto.node, GraphProto.initializer, anything else
    for number, content in fields(data):
        for part, inner in fields(content) if number == 7 else [(0, content)]:  # ModelProto.graph
            parts[part if part in parts else 0] += inner
    return {"bytes": digest(data), **{name: digest(parts[k]) for k, name in ((1, "nodes"), (5, "weights"), (0, "the rest"))}}


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each field of a protobuf message."""
    place = 0
    while place < len(data):
        tag, start = varint(data, place)
        kind = tag & 7
        if kind == 0:
            place = varint(data, start)[1]
        elif kind == 2:
            length, start = varint(data, start)
            place = start + length
        else:
            place = start + {1: 8, 5: 4}[kind]
        yield tag >> 3, data[start:place]


def varint(data: bytes, place: int) -> tuple[int, int]:
    """The number that begins at `place`, and where it ends."""
    end = next(end for end in range(place, len(data)) if data[end] < 128) + 1
    return sum((byte & 127) << 7 * power for power, byte in enumerate(data[place:end])), end


def read_mlflow(path: Path, side: Side) -> dict[str, object]:
    """What MLflow has of each run, all points of a metric's step in one value; `side.runs` names the runs."""
    query = """
        select run_uuid, 'state', '', name || ', ' || status || ', ' || lifecycle_stage from runs union all
        select run_uuid, 'parameter ' || key, key, value from params union all
        select run_uuid, 'tag ' || key, key, value from tags union all
        select run_uuid, 'metric ' || key || ' step ' || step, key, case is_nan when 1 then 'nan' else value end from metrics
        order by 1, 2, 4"""
    values: dict[str, object] = {"runs": len(side.runs)}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        for run_id, what, key, value in store.execute(query):
            if not matching(key, "names"):
                place = f"{side.runs[run_id]}: {what}"
                values[place] = [*values.get(place, ()), side.runs.get(value, value)]  # a parent by its name
    return values


def mlflow_runs(path: Path) -> dict[str, str]:
    """MLflow's id of a run -> experiment, `qexp.run`, and 1, 2, ... for runs that have the same two, by their start."""
    query = """
        select runs.run_uuid, experiments.name || '/' || coalesce(tags.value, '') || '/' ||
            row_number() over (partition by experiments.name, tags.value order by start_time, runs.run_uuid)
        from runs join experiments using (experiment_id)
        left join tags on tags.run_uuid = runs.run_uuid and tags.key = 'qexp.run'"""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        return dict(store.execute(query))


def read_bytes(path: Path, side: Side) -> dict[str, object]:
    return {"bytes": digest(path.read_bytes())}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


READERS: dict[str, Callable[[Path, Side], dict[str, object]]] = {
    ".csv": read_rows, ".json": read_rows, ".jsonl": read_rows, ".md": read_text, ".html": read_text, ".onnx": read_onnx,
    ".safetensors": read_safetensors, ".npz": read_zip, ".pt": read_zip, ".pt2": read_zip, ".db": read_mlflow,
}  # fmt: skip


@dataclass
class Comparison:
    """What was compared and what differs."""

    files: Counter = field(default_factory=Counter)
    values: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    differences: list[tuple[str, str]] = field(default_factory=list)  # kind, what
    new: Counter = field(default_factory=Counter)

    def compare(self, before: Side, after: Side) -> None:
        old, new = before.files(self.skipped), after.files(self.skipped)
        for name, path in old.items():
            kind = path.suffix or "others"
            self.files[kind] += 1
            if name in new:
                self._compare_values(name, kind, (path, before), (new[name], after))
            else:
                self.differences.append((kind, f"{name}: missing"))
        for name in new.keys() - old.keys():
            if any(fnmatchcase(name, pattern) for pattern in BY_CONTENT):
                self.differences.append((new[name].suffix or "others", f"{name}: only after"))
            else:
                self.new[f"file {name}"] += 1

    def _compare_values(self, name: str, kind: str, *sides: tuple[Path, Side]) -> None:
        read = READERS.get(kind, read_bytes)
        old, new = (
            {key: json.dumps(value).replace(str(side.root), "<root>") for key, value in read(path, side).items()}
            for path, side in sides
        )
        self.values[kind] += len(old)
        for key, value in old.items():
            if key not in new:
                self.differences.append((kind, f"{name}: {key}: missing, was {value}"))
            elif new[key] != value:
                self.differences.append((kind, f"{name}: {key}: {value} -> {new[key]}"))
        for key in new.keys() - old.keys():
            self.new[f"{Path(name).name} {re.sub(r'^row.*?[.]', '', key)}"] += 1

    def report(self, show: int) -> int:
        """Print it; returns the exit code."""
        differing = Counter(kind for kind, _ in self.differences)
        print(f"{'kind':<14}{'files':>8}{'values':>10}{'different':>11}")
        for kind in sorted(self.files | differing):
            print(f"{kind:<14}{self.files[kind]:>8}{self.values[kind]:>10}{differing[kind]:>11}")
        lines = [f"left out: {count} {reason}" for reason, count in sorted(self.skipped.items())]
        lines += [f"new, no failure: {what}, {count} times" for what, count in sorted(self.new.items())[:show]]
        lines += [f"DIFFERENT {text[:400]}" for _, text in self.differences[:show]]
        print("\n".join(lines))
        if not sum(self.values.values()):
            print("NOTHING was compared")
            return 2
        print(f"{sum(self.values.values())} values of {sum(self.files.values())} files, {len(self.differences)} differences")
        return 1 if self.differences else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="folder with runs/ and results/ of the old version")
    parser.add_argument("after", type=Path, help="the same of the new version")
    parser.add_argument("--show", type=int, default=20, help="how many differences and new names to print (20)")
    given = parser.parse_args()
    sides = [Side(path.resolve()) for path in (given.before, given.after)]
    for side in sides:
        missing = [folder for folder in FOLDERS if not (side.root / folder).is_dir()]
        if missing:
            parser.error(f"{side.root} has no {' and no '.join(missing)}")
        store = side.root / "runs" / "mlflow.db"
        side.runs = mlflow_runs(store) if store.is_file() else {}
    comparison = Comparison()
    comparison.compare(*sides)
    return comparison.report(given.show)


if __name__ == "__main__":
    sys.exit(main())
