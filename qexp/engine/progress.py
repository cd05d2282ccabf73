"""Progress where a person waits: a bar on a terminal, a plain line every minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from qexp.base.console import is_main_process, print_main

T = TypeVar("T")
LINE_EVERY_S = 60.0


def track(items: Iterable[T], *, label: str, total: int | None = None, enabled: bool = True) -> Iterator[T]:
    """Yield `items`, showing how far they are; only on rank 0.

    Args:
        items: what is waited for.
        label: what is going on (`epoch 3/30`).
        total: number of items, where known.
        enabled: otherwise in silence.
    """
    if not enabled or not is_main_process():
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, leave=False, dynamic_ncols=True)
    else:
        last = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                print_main(f"{label}: {done}/{total}" if total else f"{label}: {done}")
