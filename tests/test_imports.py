"""What starts fast stays fast: settings and asking for help load no heavy library. Run in fresh interpreters."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "mlflow", "pandas", "matplotlib", "scipy", "sklearn", "mlxtend", "statsmodels")

# runpy runs the module as `python -m` does; what was loaded is asked for after it left.
REPORT = """
import atexit, json, runpy, sys
atexit.register(lambda: print("LOADED", json.dumps(sorted({name.split(".")[0] for name in sys.modules}))))
"""


def loaded_by(code: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run code in a fresh interpreter; return the finished process and the top-level modules it had loaded."""
    done = subprocess.run([sys.executable, "-c", REPORT + code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED ")]
    assert lines, done.stderr
    return done, set(json.loads(lines[-1].removeprefix("LOADED ")))


def test_the_report_sees_a_heavy_library():
    done, loaded = loaded_by("import pandas")
    assert done.returncode == 0
    assert "pandas" in loaded


@pytest.mark.parametrize("module", ["qexp", "qexp.config.root"])
def test_import_is_light(module):
    done, loaded = loaded_by(f"import {module}")
    assert done.returncode == 0, done.stderr
    assert not loaded & set(HEAVY)


def test_a_report_takes_of_scipy_the_functions_alone():
    """What it would need of these are a few formulas, and importing them takes as long as all else of a small report."""
    code = "import sys, qexp.reporting.report; print({'scipy.stats', 'statsmodels'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900, check=True)
    assert done.stdout == "set()\n"


def test_a_sweep_that_draws_and_exports_nothing_loads_neither():
    """Each takes most of a second, of every sweep that is repeated."""
    code = "import sys, qexp.sweep.run; print({'matplotlib', 'qexp.deploy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900, check=True)
    assert done.stdout == "set()\n"


def test_the_public_names_are_listed_and_found():
    import qexp

    source = ast.parse((ROOT / "qexp" / "__init__.py").read_text())
    (typed,) = (node for node in source.body if isinstance(node, ast.If))
    assert sorted(alias.name for line in typed.body for alias in line.names) == list(qexp.__all__)
    assert set(qexp.__all__) <= set(dir(qexp))
    for name in qexp.__all__:
        assert getattr(qexp, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        qexp.nosuch  # noqa: B018


@pytest.mark.parametrize(
    "verb, words",
    [
        ("train", ["bits=44"]),
        ("train", ["bits=4,44", "-m"]),
        ("train", ["bits=4", "train.gamma=0.2", "train.schedule=cosine"]),
        ("evaluate", ["checkpoint=nosuch.pt", "bits=4,8", "-m"]),
        ("analyze", ["task=shrink", "checkpoint=nosuch.pt", "analyze.max_loss=1"]),
        ("export", ["checkpoint=nosuch.pt"]),
        ("report", ["name=nosuch"]),
    ],
    ids=str,
)
def test_a_refusal_is_light(verb, words, tmp_path):
    """What settings and file names alone show to be wrong needs no library that takes seconds to load."""
    places = [f"runs_dir={tmp_path}", f"results_dir={tmp_path}"]
    run = f"runpy.run_module('qexp.{verb}', run_name='__main__', alter_sys=True)"
    done, loaded = loaded_by(f"sys.argv[1:] = {[*words, *places]}\n{run}")
    assert done.returncode == 2 and any(part in done.stderr for part in ("nosuch", "bits=44", "train.gamma=0.2")), done.stderr
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("verb", ["train", "evaluate", "analyze", "export"])
def test_help_is_light(verb):
    done, loaded = loaded_by(f"sys.argv[1:] = ['--help']\nrunpy.run_module('qexp.{verb}', run_name='__main__', alter_sys=True)")
    assert done.returncode == 0, done.stderr
    assert "bits=8" in done.stdout and len(done.stdout.splitlines()) <= 41, "40 lines and what this test adds"
    assert not loaded & set(HEAVY)


def test_looking_at_a_network_loads_no_compiler():
    look = "inventory(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8))"
    code = f"import sys, torch; from qexp.nn.inventory import inventory; rows = {look}"
    done, _ = loaded_by(f"{code}; assert len(rows) == 2; sys.exit('torch._dynamo' in sys.modules)")
    assert done.returncode == 0, done.stderr
