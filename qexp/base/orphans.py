"""A process that another one started to work for it ends where that one is gone: `kill -9` gives the leader no time to say so.

Rejected: Linux' PR_SET_PDEATHSIG, which fires where the thread that started the process ends, and is known nowhere else; a pipe
whose other end the leader holds, which loky and torchrun do not hand over.
"""

from __future__ import annotations

import os
import signal
import threading
import time

POLL_S = 0.5  # between looks at the parent
GRACE_S = 60.0  # to save, before it is ended


def is_orphan(parent: int) -> bool:
    """True once the process that started this one runs no more: the system has given it another parent."""
    return os.getppid() != parent


def end_with(parent: int, grace_s: float = GRACE_S) -> None:
    """From here on, stop this process as a scheduler does once its parent is gone: SIGTERM, and SIGKILL where that takes long.

    Args:
        parent: number of the process that started this one, known from before.
        grace_s: seconds between the two signals.
    """
    # A daemon, so that nothing waits for it at the end.
    threading.Thread(target=_watch, args=(parent, grace_s), name="qexp-orphan-watch", daemon=True).start()


def _watch(parent: int, grace_s: float) -> None:
    while not is_orphan(parent):
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)
