import subprocess
import sys
from importlib import metadata

from qexp.tracking import environment


def _git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_versions_without_torch():
    code = "import sys; from qexp.tracking.environment import versions; print(versions(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{environment.versions()} False"
    assert environment.versions()["torch"] == metadata.version("torch")
    assert environment.versions()["python"].startswith("3.")


def test_git_revision(tmp_path):
    assert environment.git_revision(tmp_path) is None
    _git(tmp_path, "init")
    (tmp_path / "a.txt").write_text("1")
    _git(tmp_path, "add", "a.txt")
    _git(tmp_path, "commit", "-m", "a")
    _git(tmp_path, "tag", "v1")
    clean = environment.git_revision(tmp_path)
    assert len(clean) == 40 and int(clean, 16)
    (tmp_path / "new.txt").write_text("untracked files do not count")
    assert environment.git_revision(tmp_path) == clean
    (tmp_path / "a.txt").write_text("2")
    assert environment.git_revision(tmp_path) == f"{clean}-dirty"


def test_the_processor_has_a_name():
    assert environment.cpu_model()
