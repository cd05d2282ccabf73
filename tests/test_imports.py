"""What starts fast stays fast: validating a sweep and asking for help load no heavy library. Run in fresh interpreters."""

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


@pytest.mark.parametrize("module", ["qexp", "qexp.schema", "hydra_plugins.qexp_launcher"])
def test_import_is_light(module):
    done, loaded = loaded_by(f"import {module}")
    assert done.returncode == 0, done.stderr
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("verb", ["train", "evaluate", "analyze", "export"])
def test_help_is_light(verb):
    done, loaded = loaded_by(f"sys.argv[1:] = ['--help']\nrunpy.run_module('qexp.{verb}', run_name='__main__', alter_sys=True)")
    assert done.returncode == 0, done.stderr
    assert "bits: 8" in done.stdout
    assert not loaded & set(HEAVY)
