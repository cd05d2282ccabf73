"""What pip users get: the sdist, the wheel built from it, and that wheel in an environment of its own, in an empty folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment that has the wheel's qexp and none of this checkout; what qexp needs it finds where these tests do."""
    dist, home = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("venv")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (_,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    # Folders that a .pth file names are searched, and the .pth files in them, of which one leads to this checkout, are not read.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "python"


def run(python, *arguments, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([python, "-m", "qexp", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_it_trains_reports_and_hands_out_its_configuration(installed, tmp_path):
    where = subprocess.run(
        [installed, "-c", "import qexp; print(qexp.__file__)"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert installed.parents[1] in Path(where.stdout.strip()).parents
    small = ("train=smoke", "data=digits", "model=resnet8", "tracking.enabled=false", "draw_figures=false")
    done = run(installed, "train", *small, "bits=8,4", "-m", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "results" / "digits" / "report.html").read_text(encoding="utf-8")
    assert "W4 int" in page and "<script>" in page and (tmp_path / "results" / "index.html").exists()
    assert "Makefile" not in done.stdout and "make " not in done.stdout, "hints are of what is here"
    done = run(installed, "init", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "conf").iterdir()} >= {"config.yaml", "quant", "experiment"}
