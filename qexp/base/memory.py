"""Memory of this process, how much it may have, what becomes of it in the end, and the instructions of the processor."""

from __future__ import annotations

import atexit
import gc
import os
from functools import cache
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, where it has one


def process_bytes(key: str) -> int:
    """What Linux says of this process.

    Args:
        key: `VmRSS`, its resident memory, or `VmHWM`, the peak of that.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def memory_limit_bytes() -> int:
    """Memory of this machine, or of the container that the process is in."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(Path, _LIMITS):
        text = path.read_text(encoding="ascii").strip() if path.exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


@cache
def leave_memory_to_the_system() -> None:
    """Have this process end without a last look for unreachable objects, whose memory goes with it anyway.

    After torch, MLflow and Matplotlib were loaded that look took 3.1 of the 3.3 CPU seconds between the last line of a command
    and its end. What is registered to be closed or flushed in the end still is, before.
    """
    atexit.register(gc.freeze)


def processor_flags() -> frozenset[str]:
    """The processor's own words for its instructions, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    words = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(words.split())
