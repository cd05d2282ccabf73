"""Processes that start warm: a server that has imported everything forks one process per command.

A child is a process like any other: it has its own files, signals and exit code, and is killed for real. What it does not do
again is to import torch, Hydra and pandas, which takes 4 seconds, nor what a first command loads on its way (SciPy, Matplotlib,
MLflow), which takes as long again. Tests that look at start-up itself use real commands.

    python warm.py      reads JSON lines ({"arguments", "module", "folder", ...}), answers with pids and exit codes
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT_S = 900  # on whatever is waited for; reached only where something is wrong
FIRST = ("data=digits", "train=smoke", "model=custom", "device=cpu", "tracking.enabled=false", "bits=4,8", "-m")


class Warm:
    """The server, seen from the tests."""

    def __init__(self):
        environment = {key: text for key, text in os.environ.items() if not key.startswith("PYTEST")}
        command = [sys.executable, str(Path(__file__))]
        self._count = 0
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def start(self, *arguments, verb="train", script=None, folder=None, log=None, **environment):
        """Start `python -m qexp.<verb> <arguments>`, or a script, in a folder (the working directory)."""
        self._count += 1
        log = log or Path(f"process-{self._count}.log").resolve()
        job = {"arguments": arguments, "module": f"qexp.{verb}", "script": script and str(script), "environment": environment}
        return Child(self._ask(job | {"folder": str(folder or os.getcwd()), "log": str(log)}), log, self)

    def _ask(self, job):
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self):
        with self._server:
            self._server.stdin.close()


class Child:
    """A started command."""

    def __init__(self, pid, log, server):
        self.pid, self.log, self._server = pid, log, server

    def wait(self, timeout_s=LIMIT_S):
        """Its exit code as subprocess has it: negative for a signal. Kills it and fails if it takes too long."""
        code = self.code_within(timeout_s)
        assert code is not None, f"no end within {timeout_s} s:\n{self.text}"
        return code

    def code_within(self, timeout_s):
        """Its exit code; None where it took too long and was killed."""
        return self._server._ask({"wait": self.pid, "timeout_s": timeout_s})

    def kill(self, signum):
        """Send a signal; False if it is gone."""
        return self._server._ask({"kill": self.pid, "signal": int(signum)})

    def ended(self):
        """Whether it is gone, without waiting for it."""
        return not self.kill(0)

    @property
    def text(self):
        """What it has printed so far."""
        return self.log.read_text()


def load_everything():
    """Train and report once: whatever that loads, every child finds loaded."""
    from qexp.tracking.mlflow_store import import_mlflow

    import_mlflow()
    here, network = os.getcwd(), Path(__file__).parents[1] / "networks.py"
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        os.chdir(folder)
        sys.argv = ["qexp.train", *FIRST, f"model.factory={network}:tiny"]
        with contextlib.suppress(SystemExit):
            runpy.run_module("qexp.train", run_name="__main__", alter_sys=True)
        assert Path("results/digits/table.csv").is_file()
        os.chdir(here)
    gc.freeze()  # a child's garbage collector need not look at it, nor copy its pages


def serve():
    load_everything()
    running = set()
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer = reap(job["wait"], job["timeout_s"])
            running.discard(job["wait"])
        elif "kill" in job:
            answer = signalled(job["kill"], job["signal"])
        else:
            answer = os.fork()
            if answer == 0:
                child(job)
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:  # of tests that failed
        os.kill(pid, signal.SIGKILL)


def signalled(pid, signum):
    try:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
    except ChildProcessError:  # it was waited for
        return False
    os.kill(pid, signum)
    return True


def reap(pid, timeout_s):
    descriptor = os.pidfd_open(pid)
    ended, _, _ = select.select([descriptor], [], [], timeout_s)
    os.close(descriptor)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if ended else None


def child(job):
    code = 70
    try:
        os.setsid()
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        out = os.open(job["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, out), (2, out)):
            os.dup2(source, target)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        sys.argv = [job["script"] or job["module"], *job["arguments"]]
        if job["script"]:
            runpy.run_path(job["script"], run_name="__main__")
        else:
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leave:
        code = leave.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
