"""What a number rests on besides its configuration: versions, revision and machine.

Asks `importlib.metadata`, not the packages: importing torch to learn its version would cost every command two seconds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "qexp")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@cache
def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


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
def cpu_model() -> str:
    """The processor's name, or its architecture where the system does not give one."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
