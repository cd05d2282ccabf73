"""Stores of made-up trainings, whose numbers are a function of training, variant and epoch; what a folder holds."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="session")
def bench():
    """The script that measures merging, which makes stores."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("bench_merge", SCRIPTS / "bench_merge.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


@pytest.fixture
def store(tmp_path, bench):
    """`store("a", "one", "two")`: a folder with trainings of two epochs and three variants, each begun at a time of its own."""

    def make(name, *trainings, start_ms=0, **options):
        for number, training in enumerate(trainings):
            begun = start_ms + 1_000_000 * (number + 1)
            bench.write_training(tmp_path / name / "runs", training, begun, **{"epochs": 2, "variants": 3, **options})
        return tmp_path / name

    return make


@pytest.fixture
def content():
    """Relative path -> bytes of the files of a folder, but for hidden ones."""

    def read(folder):
        paths = {path.relative_to(folder): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
        return {str(name): path.read_bytes() for name, path in paths.items() if not any(part[0] == "." for part in name.parts)}

    return read


@pytest.fixture
def change():
    """`change(path, epoch=1, prec1=3.0)`: write numbers over those of a row in a file of rows."""

    def write(path, *, variant_key="key01", epoch=1, **values):
        lines = []
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row.get("variant_key") == variant_key and row.get("epoch") == epoch:
                row |= values
            lines.append(json.dumps(row, separators=(",", ":")) + "\n")
        path.write_text("".join(lines))

    return write
