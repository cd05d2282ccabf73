"""What running a network costs: time, memory, multiplications."""

from __future__ import annotations

import importlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qexp.base.memory import process_bytes
from qexp.base.progress import paused
from qexp.deploy.graph_nodes import called_module
from qexp.deploy.in_float import InFloat
from qexp.deploy.onnx.operators import KEEPS_VALUES, handler_of
from qexp.deploy.onnx.shapes import dropout, identity
from qexp.deploy.weight_codes import WeightCodes
from qexp.nn.fake_quantize import FakeQuantize
from qexp.nn.graph import GraphNetwork
from qexp.nn.layer_calls import products
from qexp.tracking.record import FLOAT_BITS

_CHILD = "import sys; from qexp.deploy.cost import report_peak; report_peak(sys.argv[1])"


@dataclass(frozen=True)
class Latency:
    """The time of one call.

    Args:
        median_ms: milliseconds.
        low_ms: 10th percentile.
        high_ms: 90th percentile.
        repeats: calls that were timed.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def latency(run: Callable[[], object], *, repeats: int, warmup: int) -> Latency:
    """Time a call.

    Args:
        run: what to time, once a repeat.
        repeats: at least 1.
        warmup: calls before, which do not count.
    """
    times_ms = []
    with paused():
        for _ in range(warmup):
            run()
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times_ms.append(1e3 * (time.perf_counter() - start))
    ends = statistics.quantiles(times_ms, n=10, method="inclusive") if repeats > 1 else times_ms * 9
    return Latency(statistics.median(times_ms), ends[0], ends[-1], repeats)


def peak_memory_bytes(name: str, path: Path, shape: tuple[int, ...], *, threads: int = 1) -> int:
    """What a runtime needs to load a file and to run a batch, above a process that has imported it and does nothing.

    Measured in a process of its own: the peak of its resident memory. Torch compiles there, which counts too.

    Args:
        name: of the runtime, as for `open_runtime`.
        path: of the file, as for `open_runtime`.
        shape: of the batch, [N, C, H, W].
        threads: of one run.

    Raises:
        RuntimeError: the process failed; its last line.
    """
    what = json.dumps({"name": name, "path": str(path), "shape": list(shape), "threads": threads})
    done = subprocess.run([sys.executable, "-c", _CHILD, what], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return int(done.stdout.split()[-1])


def report_peak(what: str) -> None:
    """Print what `peak_memory_bytes` asks for; runs in the process that is measured."""
    from qexp.config.export import RUNTIMES
    from qexp.deploy.runtimes import open_runtime  # not at the top: cost is counted without any runtime, too

    request = json.loads(what)
    importlib.import_module(RUNTIMES[request["name"]].module)
    images = torch.zeros(request["shape"])
    before = _reset_peak()
    open_runtime(request["name"], Path(request["path"]), threads=request["threads"]).run(images)
    print(max(0, _peak() - before))


def _reset_peak() -> int:
    """Resident bytes now; the peak begins here, where the kernel lets it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return process_bytes("VmRSS")


def _peak() -> int:
    """The peak of this process's resident memory in bytes."""
    if Path("/proc/self/status").exists():
        return process_bytes("VmHWM")
    import resource  # Unix alone

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def layer_bits(network: GraphNetwork, weights: Mapping[str, WeightCodes | InFloat]) -> dict[str, tuple[int, int]]:
    """Layer -> bits of its weight and of what it reads, 32 where these are float; of a matrix product both of what it reads.

    Args:
        network: as for `qexp.deploy.integer_network.integer_codes`.
        weights: state-dict name -> codes, or numbers of 8 bits.
    """
    bits: dict[object, int] = {}
    widths, named = {}, products(network)
    for node in network.graph.nodes:
        module = called_module(network, node)
        handler = handler_of(node, module) if node.op.startswith("call") and not isinstance(module, FakeQuantize) else None
        if isinstance(module, FakeQuantize):
            bits[node] = module.spec.bits
        elif handler is not None and handler in (*KEEPS_VALUES, identity, dropout):
            given = node.args[0] if node.args and isinstance(node.args[0], list | tuple) else node.args[:1]  # not indices
            bits[node] = max((bits.get(operand, FLOAT_BITS) for operand in given), default=FLOAT_BITS)
        elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            weight = weights.get(f"{node.target}.weight")
            widths[str(node.target)] = (_weight_bits(weight), bits.get(node.args[0], FLOAT_BITS))
        elif node in named:
            widths[named[node]] = (bits.get(node.args[1], FLOAT_BITS), bits.get(node.args[0], FLOAT_BITS))
    return widths


def bops(macs: Mapping[str, int], bits: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Layer -> bit operations of one image: MACs x bits of the weight x bits of the activation.

    Args:
        macs: layer -> multiply-accumulates of one image.
        bits: layer -> bits of its weight and of what it reads; a layer that it lacks is float.

    Source: Baskin et al. 2018, arXiv:1804.10969, without the term for the accumulator.

    >>> bops({"conv": 10, "head": 2}, {"conv": (4, 8)})
    {'conv': 320, 'head': 2048}
    """
    return {name: count * math.prod(bits.get(name, (FLOAT_BITS, FLOAT_BITS))) for name, count in macs.items()}


def _weight_bits(weight: WeightCodes | InFloat | None) -> int:
    """Of the codes; a grid without its lowest code has as many."""
    if weight is None:
        return FLOAT_BITS
    if not isinstance(weight, WeightCodes):
        return weight.bits
    return (weight.qparams.quant_max - weight.qparams.quant_min).bit_length()
