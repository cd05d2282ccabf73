"""What a number rests on besides its configuration: versions, revision, machine, and the process that wrote it.

Asks `importlib.metadata`, not the packages: importing torch to learn its version would cost every command two seconds.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "qexp")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers, those that are installed."""
    return dict(_versions())


def git_revision(folder: str | Path | None = None) -> str | None:
    """The 40 hex digits of the checkout's commit, with `-dirty` where tracked files differ from it; None outside a checkout.

    Args:
        folder: a folder in the checkout; None takes the one this package was imported from, if it is tracked there: an
            installed copy in a virtual environment inside some checkout is not that checkout's code.
    """
    if folder is None:
        folder = Path(__file__).parent
        if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
            return None
    return _git(Path(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not installed."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def host() -> str:
    """Name of this machine."""
    return socket.gethostname()


@cache
def cpu_model() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same number.

    Args:
        host: machine name. pid: process number. start: boot id and start tick on Linux, empty where the system does not tell.
    """

    host: str
    pid: int
    start: str

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls(host(), os.getpid(), _start(os.getpid()) or "")

    @property
    def dead(self) -> bool:
        """True if it ran on this machine and certainly runs no more; False where that cannot be told."""
        if self.host != host():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False  # it exists and belongs to someone else
        now = _start(self.pid)
        return bool(self.start) and now is not None and now != self.start


def _start(pid: int) -> str | None:
    """When a process started, as an opaque text; None where /proc does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The second field, the command, may hold spaces and parentheses: count from the last parenthesis.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # fields[0] is stat's third field, the state; its 22nd is the start in clock ticks since boot. A zombie runs no more.
    return f"{boot[:8]}-{fields[19]}" if fields[0] not in ("Z", "X") else "ended"
