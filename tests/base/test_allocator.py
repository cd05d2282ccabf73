"""Real processes: what malloc was told cannot be taken back."""

import subprocess
import sys

import pytest

from qexp.base import allocator

# Ten times 64 MiB, written and freed; prints how many pages were faulted in.
PROGRAM = """
import resource, sys
from qexp.base.allocator import keep_freed_memory
if sys.argv[1] == "told":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
CHOICES = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


@pytest.fixture
def no_choice(monkeypatch):
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    if allocator.left_alone() is not None:
        pytest.skip(str(allocator.left_alone()))


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)


def test_freed_memory_is_used_again(no_choice, monkeypatch):
    plain, told = faults("plain"), faults("told")
    assert told < plain / 4
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")  # a choice of the user's: nothing is told
    assert faults("told") > plain / 4


@pytest.mark.parametrize(
    ("name", "value", "chosen"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "1", True),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", True),
        ("GLIBC_TUNABLES", "glibc.rtld.nns=2", False),
        ("LD_PRELOAD", "libjemalloc.so", True),
        ("LD_PRELOAD", "", False),
    ],
)
def test_a_choice_of_the_users_stands(no_choice, monkeypatch, name, value, chosen):
    monkeypatch.setenv(name, value)
    assert allocator.left_alone() == (f"{name} is set" if chosen else None)


def test_other_c_libraries_are_left_alone(no_choice, monkeypatch):
    def unknown(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(allocator.os, "confstr", unknown)
    assert allocator.left_alone() == "the C library is not glibc"
