"""A process that is killed while it makes MLflow's tables leaves no store that nobody can open."""

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
from pathlib import Path
from qexp.tracking.mlflow_store import open_store
print(open_store(f"sqlite:///{Path('runs/mlflow.db').absolute()}", runs_dir="runs", experiment="x").experiment_id)
"""


def start():
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_amid_the_migrations():
    killed = start()
    end = time.monotonic() + 900
    while not [path for path in Path("runs").glob(".mlflow.db.*.tmp") if path.stat().st_size > 8192]:
        assert killed.poll() is None and time.monotonic() < end, killed.communicate()
        time.sleep(0.005)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    assert not Path("runs/mlflow.db").exists()
    second = start()
    out, err = second.communicate(timeout=900)
    assert second.returncode == 0 and out == "1\n", err
    assert not list(Path("runs").glob("*.tmp*")) and not list(Path("runs").glob(".*.tmp*"))
    with sqlite3.connect("runs/mlflow.db") as connection:
        assert connection.execute("select count(*) from experiments").fetchone() == (2,)
