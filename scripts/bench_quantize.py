"""How long quantizing a state dict into its shadow takes, over `copy_` of the same bytes; every peer in one run, alternating.

    python scripts/bench_quantize.py [--model resnet50] [--rounds 15] [--bits 8] [--device cpu] [--threads N] [--clock wall]

Peers quantize the convolution and linear weights and leave the rest as it is:
    qexp ...                   Shadow.load: range, quantization and the copy of the rest, into memory that exists; by the compiled
                               kernel where there is a compiler, and of the default scheme by torch's blocks too
    document 002, function     its `linear_quantize` as printed (codes, no rounding, no inverse) on the same tensors, then copy_
                               into the shadow
    document 002, whole path   its loop as printed: deepcopy, state_dict, load_state_dict, every tensor but the running statistics
                               and counters
    torch.fake_quantize_*      with scale and zero point given, so without the range pass, then copy_ into the shadow

Each round runs every peer once, in turn, and its ratio is to the same round's `copy_`. Printed: the median ratio, its quartiles
and the median time. The CSV in the results folder names the environment. `--clock cpu` counts the time of the process's
processors, for a machine that others use: what they take is not counted, what they evict from its caches is.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import os
import platform
import statistics
from collections import OrderedDict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from unittest import mock

import torch
from bench_common import CLOCKS
from torch import Tensor, nn

from qexp.base.types import Plan, PlanRow, QuantSpec, TensorInfo
from qexp.config.model import ModelSettings
from qexp.models.build import build_model
from qexp.nn.shadow import Shadow
from qexp.quant import uniform
from qexp.quant.qparams import choose_qparams
from qexp.quant.ranges import min_max


def linear_quantize(input, bits):  # noqa: A002
    """Document 002's function, as printed."""
    range1 = input.max() - input.min()
    temp = (input - input.min()) / range1

    range2 = math.pow(2.0, bits) - 1
    min_v = -math.pow(2.0, bits - 1)
    ret = (temp.float() * range2) + min_v
    ret = ret.float()

    return ret


def document_whole_path(model: nn.Module, bits: int) -> nn.Module:
    """Document 002's loop over the state dict; its counters, which its code would destroy, are passed over."""
    model_q = copy.deepcopy(model)
    state = model.state_dict()
    state_dict_quant = OrderedDict()
    for k, v in state.items():
        v_quant = v
        if "running" in k or "num_batches" in k:
            state_dict_quant[k] = v
            continue
        if v.nelement() != 0:
            v_quant = linear_quantize(v, bits)
        state_dict_quant[k] = v_quant
    model_q.load_state_dict(state_dict_quant)
    return model_q


def weight_names(model: nn.Module) -> list[str]:
    """The convolution and linear weights."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def plan_of(state: dict[str, Tensor], names: list[str], spec: QuantSpec) -> Plan:
    """Every named tensor quantized alike."""
    chosen = set(names)
    rows = []
    for name, tensor in state.items():
        info = TensorInfo(
            name=name,
            module=name,
            module_type="",
            kind="other",
            role="weight",
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype),
        )
        rows.append(PlanRow(info, spec if name in chosen else None, "bench"))
    return Plan(rows=tuple(rows))


def peers(model: nn.Module, bits: int) -> dict[str, Callable[[], object]]:
    """Name -> one quantization of the whole state dict; `copy_` first."""
    state, names = model.state_dict(), weight_names(model)
    shadow = Shadow(model)
    targets = shadow.module.state_dict()
    rest = [name for name in state if name not in set(names)]

    def fill(quantized: Callable[[str, Tensor], Tensor]) -> None:
        with torch.no_grad():
            for name in names:
                targets[name].copy_(quantized(name, state[name]))
            for name in rest:
                targets[name].copy_(state[name])

    table: dict[str, Callable[[], object]] = {"copy_": lambda: fill(lambda _, tensor: tensor)}
    for scheme in ("linear", "affine", "symmetric"):
        for granularity in ("per_tensor", "per_channel"):
            plan = plan_of(state, names, QuantSpec(scheme=scheme, bits=bits, granularity=granularity))
            table[f"qexp {scheme} {granularity}"] = lambda plan=plan: shadow.load(state, plan)
            if scheme == "linear":
                table[f"qexp {scheme} {granularity}, torch's blocks"] = lambda plan=plan: by_blocks(shadow, state, plan)
    table["document 002, function"] = lambda: fill(lambda _, tensor: linear_quantize(tensor, bits))
    table["document 002, whole path"] = lambda: document_whole_path(model, bits)

    whole = {name: choose_qparams(*min_max(state[name]), bits) for name in names}
    rows = {name: choose_qparams(*min_max(state[name], 0), bits) for name in names}
    numbers = {name: (float(q.scale), int(q.zero_point), q.quant_min, q.quant_max) for name, q in whole.items()}
    vectors = {name: (q.scale, q.zero_point.int(), 0, q.quant_min, q.quant_max) for name, q in rows.items()}
    table["torch.fake_quantize_per_tensor_affine"] = lambda: fill(
        lambda name, tensor: torch.fake_quantize_per_tensor_affine(tensor, *numbers[name])
    )
    table["torch.fake_quantize_per_channel_affine"] = lambda: fill(
        lambda name, tensor: torch.fake_quantize_per_channel_affine(tensor, *vectors[name])
    )
    return table


def by_blocks(shadow: Shadow, state: dict[str, Tensor], plan: Plan) -> None:
    """What a machine without a compiler does."""
    with mock.patch.object(uniform, "_is_plain", return_value=False):
        shadow.load(state, plan)


def measure(
    table: dict[str, Callable[[], object]], rounds: int, device: str, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every peer in every round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for number in range(rounds + 2):
        for name, run in table.items():
            _wait(device)
            start = clock()
            run()
            _wait(device)
            if number >= 2:
                seconds[name].append(clock() - start)
    return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def processor(device: str) -> str:
    """What ran it: the GPU's name, or the CPU's with its family and model where the name alone is vague."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().split("\n\n")[0].splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), action="append", help="default: cpu, and cuda where there is one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--results-dir", type=Path, default=Path("results/bench"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("the kernel is compiled" if uniform.build() else "no C++ compiler: torch's blocks alone")
    built = build_model(ModelSettings(name=args.model), num_classes=1000, image_shape=(3, 224, 224), seed=0).eval()
    rows = []
    for device in args.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        model = built.to(device)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        environment = {
            "clock": args.clock,
            "device": device,
            "processor": processor(device),
            "threads": args.threads,
            "torch": torch.__version__,
        }
        load = os.getloadavg()[0]
        print(
            f"{args.model}, {num_bytes / 2**20:.1f} MiB, bits={args.bits}, {environment}, load {load:.1f}, n={args.rounds} rounds"
        )
        seconds = measure(peers(model, args.bits), args.rounds, device, CLOCKS[args.clock])
        for name, times in seconds.items():
            ratios = [one / base for one, base in zip(times, seconds["copy_"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            median_ms = statistics.median(times) * 1e3
            print(f"{name:<40} {middle:6.2f} x copy_  (quartiles {low:.2f} to {high:.2f})  {median_ms:8.2f} ms")
            rows.append(
                {
                    "peer": name,
                    "ratio_median": round(middle, 3),
                    "ratio_q1": round(low, 3),
                    "ratio_q3": round(high, 3),
                    "median_ms": round(median_ms, 3),
                    "n": args.rounds,
                    "bits": args.bits,
                    "model": args.model,
                    "num_bytes": num_bytes,
                    **environment,
                    "load_at_start": round(load, 2),
                    "date": date.today().isoformat(),
                }
            )
    path = args.results_dir / f"quantize-{args.model}-{slug(rows)}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")


def slug(rows: list[dict[str, object]]) -> str:
    """The environment as part of a file name."""
    names = list(dict.fromkeys(str(row["processor"]) for row in rows))
    text = "-".join([*names, f"{rows[0]['threads']}threads", f"torch{rows[0]['torch']}", str(rows[0]["date"])]).lower()
    return "".join(char if char.isalnum() or char in "-." else "_" for char in text)


if __name__ == "__main__":
    main()
