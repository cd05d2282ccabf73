import os
import subprocess
import sys
from dataclasses import replace
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


def test_process_is_dead_once_it_has_ended():
    me = environment.Process.current()
    assert not me.dead
    code = "from qexp.tracking.environment import Process; p = Process.current(); print(p.pid, p.start, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid, _, start = child.stdout.readline().strip().partition(" ")
    other = environment.Process(me.host, int(pid), start)
    assert not other.dead
    child.kill()
    child.communicate()
    assert other.dead
    assert not replace(other, host="elsewhere").dead


def test_a_reused_process_number_is_another_process():
    me = environment.Process.current()
    if me.start:
        assert replace(me, start=me.start + "0").dead
    assert not replace(me, start="").dead


def test_a_zombie_is_dead():
    me = environment.Process.current()
    if not me.start:
        return
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    zombie = environment.Process(me.host, child.pid, environment._start(child.pid))
    assert not zombie.dead
    child.stdin.write("\n")
    child.stdin.flush()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # WNOWAIT leaves it a zombie
    assert zombie.dead
    child.communicate()


def test_machine_has_names():
    assert environment.host() and environment.cpu_model()
