import signal
import subprocess
import sys

PROGRAM = """
from qexp.base.faults import fault_point
for number in range(4):
    fault_point("here")
    print(number, flush=True)
"""


def run(monkeypatch, fault):
    monkeypatch.setenv("QEXP_FAULT", fault)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout.split()


def test_the_process_dies_where_the_environment_says(monkeypatch):
    assert run(monkeypatch, "here:3") == (-signal.SIGKILL, ["0", "1"])
    assert run(monkeypatch, "here") == (-signal.SIGKILL, [])
    assert run(monkeypatch, "there") == (0, ["0", "1", "2", "3"])
    assert run(monkeypatch, "") == (0, ["0", "1", "2", "3"])
