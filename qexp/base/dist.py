"""Collectives of torch.distributed that do nothing in a single process, and the channel between rank 0 and the others.

One process group lives as long as its process. Beside it, on the same store, runs a control channel: rank 0 alone reads the
command line, the others wait for its jobs, and how a job ended is agreed through the store, never through a collective.
Rejected: Hydra on every rank (folders diverge, and re-creating the group hangs), and collectives for outcomes (a rank that
failed alone would pair its next collective with another job's, which gives wrong numbers without an error).
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # longest that one rank may keep the others waiting within a job

Value = TypeVar("Value")


def is_initialized() -> bool:
    """True where this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 in a single process."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 in a single process."""
    return dist.get_world_size() if is_initialized() else 1


def barrier() -> None:
    """Wait until every rank has called this."""
    if is_initialized():
        dist.barrier()


def all_reduce(tensor: Tensor, how: Literal["SUM", "MIN", "MAX"]) -> Tensor:
    """Sum, smallest or largest `tensor` over the ranks, in place; returns it."""
    if is_initialized():
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, how))
    return tensor


def all_reduce_max_async(tensor: Tensor) -> dist.Work:
    """Begin to replace a CPU `tensor` by its largest over the ranks; its value holds after `wait()` of the result."""
    return dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)


def all_gather_object(value: object) -> list[Any]:
    """The values of all ranks, in rank order: tensors, numbers, texts, None, and lists, tuples and dicts of them.

    They travel in the form of a checkpoint and are read as one, by `torch.load(weights_only=True)`: nothing is unpickled.
    """
    if not is_initialized():
        return [value]
    own = _pack(value)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([own.numel()]))
    longest = max(int(size) for size in sizes)
    gathered = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(gathered, torch.cat([own, own.new_zeros(longest - own.numel())]))
    return [_unpack(data[: int(size)]) for data, size in zip(gathered, sizes, strict=True)]


def from_main(compute: Callable[[], Value]) -> Value:
    """What `compute` returns on rank 0, on every rank; the others do not call it. Values as for `all_gather_object`."""
    if not is_initialized():
        return compute()
    if rank() == 0:
        value = compute()
        data = _pack(value)
        dist.broadcast(torch.tensor([data.numel()]), src=0)
        dist.broadcast(data, src=0)
        return value
    size = torch.tensor([0])
    dist.broadcast(size, src=0)
    data = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(data, src=0)
    received: Value = _unpack(data)
    return received


def _pack(value: object) -> Tensor:
    """[bytes] uint8, the file that `torch.save` would write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


def _unpack(data: Tensor) -> Any:
    """The value that `_pack` made a file of."""
    return torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)


def local_rank() -> int:
    """This process's number on its machine, 0 in a single process."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite `tensors` with rank 0's, bit for bit: one message per dtype and device."""
    if not is_initialized():
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    for members in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in members])
        dist.broadcast(flat, src=0)
        for tensor, part in zip(members, flat.split([tensor.numel() for tensor in members]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def broadcast_state(module: nn.Module) -> None:
    """Overwrite the module's parameters and buffers with rank 0's; BN statistics differ between ranks until then."""
    broadcast_tensors([*module.parameters(), *module.buffers()])


@dataclass(frozen=True)
class Group:
    """This process among the others of a training.

    Args:
        rank: its number.
        world_size: how many there are.
        local_rank: its number on its machine.
        control: the store that the control channel uses.
    """

    rank: int
    world_size: int
    local_rank: int
    control: dist.Store


def launched() -> bool:
    """True where torchrun, torch.distributed.launch or the like has set the environment for several processes."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def init_from_env(device_type: str) -> Group:
    """Join the process group that the environment describes: gloo for CPU tensors, and nccl for those on a GPU.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; makes cuda:LOCAL_RANK current. Call it once per process.
    """
    assert not is_initialized(), "one process group per process"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    attempt, device = _attempt(), None
    if device_type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    store, own_rank, size = next(iter(dist.rendezvous("env://", timeout=COLLECTIVE_TIMEOUT)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=dist.PrefixStore(f"pg/{attempt}", store),
        rank=own_rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device,
    )
    return Group(own_rank, size, local_rank, dist.PrefixStore(f"qexp/{attempt}", store))


def _attempt() -> str:
    """Which start of the workers this is, where torchrun keeps its store for all of them.

    On one machine it does, and counts. Over several machines, whose counts may differ, only its c10d rendezvous can restart
    workers; it makes a store for each start.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else "0"


def abandon(limit_s: float = 2) -> None:
    """Close this rank's connections after an error, so that the others' collectives end now and not when this process does.

    Destroying a group that holds half a collective may hang: it is tried in a thread that nobody waits for longer than `limit_s`.
    """
    if is_initialized():
        closing = threading.Thread(target=dist.destroy_process_group, daemon=True)
        closing.start()
        closing.join(limit_s)
