"""glibc's malloc, told to keep memory that is freed.

A batch's activations are tens or hundreds of MiB a layer. By its defaults glibc maps each of them anew, and returns it to the
kernel a layer later: every page is cleared and faulted in again, which was up to half the time of an evaluation.

Rejected: huge pages (`THP_MEM_ALLOC_ENABLE` of torch), which spare faults and still clear each page anew; limits for trimming
without one for mapping, which end glibc's own adaption of that and so double the faults; another allocator, a dependency.
"""

import ctypes
import os

# The numbers of mallopt's parameters (malloc.h), and its values: an int holds no more than 2 GiB.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES = 2**31 - 1  # freed at the heap's end before it shrinks
_PAD_BYTES = 64 * 2**20  # by which the heap grows beyond what is asked
_MAPPED_BYTES = (2**30, 2**25)  # from which a tensor is mapped alone; some releases refuse more than 32 MiB


def keep_freed_memory() -> None:
    """Have malloc keep freed memory for what is allocated next, unless `left_alone` says why not.

    Values do not change, nor does the alignment of tensors. See mallopt(3).
    """
    if left_alone() is not None:
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Mapping first: where it is refused, the limits for trimming alone would cost more than they save.
    if any(mallopt(_MMAP_THRESHOLD, size) for size in _MAPPED_BYTES):
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_TOP_PAD, _PAD_BYTES)


def left_alone() -> str | None:
    """Why malloc stays as it is: another C library, or a choice of the user's; None where it is told.

    A choice is `MALLOC_...`, a limit of malloc's in `GLIBC_TUNABLES`, or anything in `LD_PRELOAD`, by which allocators come.
    """
    if not _is_glibc():
        return "the C library is not glibc"
    names = sorted(name for name in os.environ if name.startswith("MALLOC_"))
    names += ["GLIBC_TUNABLES"] if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "") else []
    names += ["LD_PRELOAD"] if os.environ.get("LD_PRELOAD") else []
    return f"{names[0]} is set" if names else None


def _is_glibc() -> bool:
    """True where the C library is glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # Windows has no confstr, macOS and musl no such name
        return False
