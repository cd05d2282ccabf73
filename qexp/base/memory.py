"""Memory of this process, how much it may have, and the instructions of the processor."""

from __future__ import annotations

import os
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


def processor_flags() -> frozenset[str]:
    """The processor's own words for its instructions, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    words = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(words.split())
