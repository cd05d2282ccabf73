"""Real processes, of which the one in between is killed as `kill -9` does."""

import os
import signal
import subprocess
import sys

import pytest

# A parent that starts a child and waits to be killed; the child says its number, and how it ends, on a pipe that it holds alone.
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
child.wait()
"""
CHILD = """
import os, signal, sys, time
from qexp.base.orphans import end_with
from qexp.base.preemption import Preempted, listening

end_with(int(sys.argv[1]), grace_s=0.2)
try:
    with listening():
        print(os.getpid(), flush=True)
        while True:
            time.sleep(60)
except Preempted as stop:
    print(stop, flush=True)
"""
DEAF = CHILD.replace("end_with(int", "signal.signal(signal.SIGTERM, signal.SIG_IGN); end_with(int").replace(
    "with listening()", "if True"
)


@pytest.mark.parametrize(("child", "said"), [(CHILD, "stopped by SIGTERM"), (DEAF, "")], ids=["saves", "deaf"])
def test_a_child_ends_when_its_parent_is_killed(child, said):
    with subprocess.Popen([sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE, text=True) as parent:
        os.kill(int(parent.stdout.readline()), 0)  # it is there
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read().strip() == said  # to its end, which comes when the child has closed it
