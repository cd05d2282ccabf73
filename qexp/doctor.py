"""What this machine can do of qexp: python -m qexp.doctor [runs_dir=runs].

One line for each thing that commands may ask for, with a remedy where it is missing: Python, torch, threads, instructions,
memory, malloc, disk, GPU, compiler, runtimes, pretrained networks, MLflow's store. Exit code 1 where something that every command
needs does not work.

Keys: runs_dir=runs.
"""

import importlib.util
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from qexp.base.allocator import left_alone
from qexp.base.compiler import cxx_compiler
from qexp.base.console import print_result
from qexp.base.errors import UserError
from qexp.base.keyvalue import run_verb
from qexp.base.memory import memory_limit_bytes, processor_flags
from qexp.base.places import check_folder
from qexp.config.export import RUNTIMES
from qexp.config.model import NETWORKS
from qexp.tracking.environment import cpu_model, versions

INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_int8": "AMX"}
NEEDED = ("mlflow", "torchvision", "pandas", "matplotlib", "hydra")


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """What `qexp.doctor` takes.

    Args:
        runs_dir: where trainings would be stored.
    """

    runs_dir: str = "runs"


@dataclass(frozen=True)
class Check:
    """One line.

    Args:
        name: what is looked at.
        state: `ok`, `missing` (something optional) or `broken` (something that every command needs).
        text: what is there, or what to do.
    """

    name: str
    state: str
    text: str


def run(settings: DoctorSettings) -> int:
    """Print the checks; 1 where one is broken."""
    checks = [*_software(), *_machine(), *_optional(), *_places(settings.runs_dir)]
    width = max(len(check.name) for check in checks)
    is_broken = any(check.state == "broken" for check in checks)
    lines = [f"{check.name:<{width}}  {check.state:<7}  {check.text}" for check in checks]
    print_result(*lines, checks=[asdict(check) for check in checks], broken=is_broken)
    return int(is_broken)


def _software() -> Iterator[Check]:
    """Python, torch and what comes with them."""
    words = " ".join(f"{name} {version}" for name, version in versions().items())
    yield Check("versions", "ok" if sys.version_info >= (3, 11) else "broken", words)
    try:
        import torch

        yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads (OMP_NUM_THREADS sets them)")
    except Exception as error:  # an installation may fail in any way, and that is the question
        yield Check("torch", "broken", f"{type(error).__name__}: {error}")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    yield Check("packages", "broken" if missing else "ok", f"not installed: {', '.join(missing)}" if missing else "all there")


def _machine() -> Iterator[Check]:
    """Processor, memory, GPU, compiler."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("processor", "ok", f"{cpu_model()}, {cores} cores for this process")
    flags = processor_flags()
    known = list(dict.fromkeys(word for flag, word in INSTRUCTIONS.items() if flag in flags))
    advice = "" if "VNNI" in known else "no VNNI: 8-bit products of some runtimes saturate or are slower (docs/export.md); has "
    yield Check("instructions", "ok" if "VNNI" in known else "missing", f"{advice}{' '.join(known) or 'none of AVX2 and above'}")
    yield Check("memory", "ok", f"{memory_limit_bytes() / 2**30:.1f} GiB for this machine or container")
    why = left_alone()
    yield Check("malloc", "ok", f"left as it is: {why}" if why else "told to keep freed memory, by all commands but export")
    yield _gpu()
    compiler = cxx_compiler()
    remedy = "train.compile=true, evaluate.engine=compiled and export.runtime=torch need one: apt install g++"
    yield Check("compiler", "ok" if compiler else "missing", compiler or remedy)


def _gpu() -> Check:
    """The GPUs that torch sees."""
    try:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except Exception as error:  # as above
        return Check("GPU", "missing", f"{type(error).__name__}: {error}")
    return Check("GPU", "ok" if names else "missing", ", ".join(names) or "none; device=auto takes the CPU")


def _optional() -> Iterator[Check]:
    """What extras of the package bring."""
    for row in RUNTIMES.values():
        there = importlib.util.find_spec(row.module.partition(".")[0]) is not None
        state = ("ok", row.summary) if there else ("missing", f"pip install {row.install}")
        yield Check(f"export.runtime={row.name}", *state)
    packages = [(f"model={row.name}", *row.distribution) for row in NETWORKS.values() if row.distribution is not None]
    others = (
        ("model=timm", "timm", "timm"),
        ("hydra/sweeper=optuna", "optuna", "search"),
        ("submitit", "submitit", "slurm"),
        ("tracking.system_metrics", "psutil", "system"),
    )
    for name, distribution, extra in (*packages, *others):
        try:
            yield Check(name, "ok", f"{distribution} {metadata.version(distribution)}")
        except metadata.PackageNotFoundError:
            yield Check(name, "missing", f"pip install 'qexp[{extra}]'")


def _places(runs_dir: str) -> Iterator[Check]:
    """Where results would go, and MLflow's store there."""
    try:
        check_folder("runs_dir", runs_dir, "trainings")
    except UserError as error:
        yield Check("runs_dir", "broken", str(error))
        return
    place = next(path for path in (Path(runs_dir).absolute(), *Path(runs_dir).absolute().parents) if path.exists())
    yield Check("runs_dir", "ok", f"{runs_dir}: {shutil.disk_usage(place).free / 2**30:.1f} GiB free")
    store = Path(runs_dir, "mlflow.db")
    if not store.exists():
        yield Check("MLflow's store", "ok", f"{store} is made by the first command")
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(store.absolute()))}?mode=ro", uri=True)) as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM experiments").fetchone()
        yield Check("MLflow's store", "ok", f"{store}: {count} experiments")
    except sqlite3.Error as error:
        remedy = "move it away: python -m qexp.sync makes it anew from the journals"
        yield Check("MLflow's store", "broken", f"{store}: {error}; {remedy}")


if __name__ == "__main__":
    sys.exit(run_verb(DoctorSettings, run, __doc__))
