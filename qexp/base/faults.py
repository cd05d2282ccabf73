"""Points at which a test can kill a process: nothing happens at them unless the environment asks for it.

`QEXP_FAULT=state.rotated` kills the process (SIGKILL, no clean-up) when it first passes the point of that name, and
`QEXP_FAULT=state.rotated:3` when it passes it for the third time. A crash at a random moment seldom falls between two system
calls; these do.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "QEXP_FAULT"
_passed: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Die here if the environment says so."""
    wanted, _, number = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] == int(number or 1):
        os.kill(os.getpid(), signal.SIGKILL)
