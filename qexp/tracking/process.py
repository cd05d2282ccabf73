"""Which process wrote something, and whether it still runs.

Tracking writes it into the journal, and reporting reads there whether a job that was begun is still at work.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def host() -> str:
    """Name of this machine."""
    return socket.gethostname()


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same number.

    Args:
        host: machine name.
        pid: process number.
        start: boot id and start tick on Linux, empty where the system does not give them.
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
    """When a process started, as an opaque text; None where /proc does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The second field, the command, may hold spaces and parentheses: count from the last parenthesis.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # fields[0] is stat's third field, the state; its 22nd is the start in clock ticks since boot. A zombie runs no more.
    return f"{boot[:8]}-{fields[19]}" if fields[0] not in ("Z", "X") else "ended"
