"""The C++ compiler that torch.compile would find; torch-free, so that a broken torch is told apart from a missing compiler.

What is built here is kept in the user's cache (`$XDG_CACHE_HOME/qexp`, `~/.cache/qexp`), one library for each source and kind of
processor, and made whole before it gets its name: processes that build at once take each other's, or their own.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from qexp.base.memory import processor_flags

# No -ffast-math: results are compared bit for bit. Without contraction a product and a sum are rounded one after the other;
# errno and traps, which nobody reads, keep loops from being vectorized.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_THREADS = "-fopenmp"  # clang may come without
_TIMEOUT_S = 120


def cxx_compiler() -> str | None:
    """What torch.compile takes: $CXX alone where it is set, else g++, on macOS clang++; None where that is not on the path."""
    name = os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")
    return name if shutil.which(name) else None


def built_library(source: Path) -> Path | None:
    """Where the library of a source file is kept, whether it is there or not; None for a user without a home.

    Args:
        source: C++.
    """
    machine = f"{platform.system()} {platform.machine()} {sorted(processor_flags())} {_FLAGS}"
    key = hashlib.sha256(source.read_bytes() + machine.encode()).hexdigest()[:16]
    with suppress(RuntimeError):
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return base / "qexp" / "kernels" / f"{source.stem}-{key}.so"
    return None


def build_library(source: Path) -> Path | None:
    """Compile a source file into the library of `built_library`; None where that fails: no compiler, no place, no success.

    Args:
        source: C++, with `extern "C"` functions; OpenMP is used where the compiler has it.
    """
    library, compiler = built_library(source), cxx_compiler()
    if library is None or compiler is None:
        return None
    with suppress(OSError, subprocess.TimeoutExpired):
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            out = Path(folder, library.name)
            for threads in ([_THREADS], []):
                command = [compiler, *_FLAGS, *threads, str(source), "-o", str(out)]
                if subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False).returncode == 0:
                    out.replace(library)
                    return library
    return None
