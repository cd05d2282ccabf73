"""The C++ compiler that torch.compile would find; torch-free, so that a broken torch is told apart from a missing compiler."""

import os
import shutil


def cxx_compiler() -> str | None:
    """The first of $CXX, g++ and clang++ that is on the path; None without one."""
    return next((name for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and shutil.which(name)), None)
