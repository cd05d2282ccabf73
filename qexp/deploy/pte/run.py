"""A .pte file in ExecuTorch's Python runtime, with the threads of its pool and in parts of as many images as it has room for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.deploy.pte.export import INTEGERS, MOST_IMAGES, POINTS, PTE_CODES_SUFFIX, PTE_SUFFIX, quiet

RunBatch = Callable[[Tensor, bool], list[Tensor]]


def open_pte(path: Path, threads: int, offsets: Mapping[str, int]) -> tuple[RunBatch, Callable[[], frozenset[str]]]:
    """What runs a batch, (images, with codes?) -> logits and codes, and what names the layers in integers.

    Args:
        path: of the network, with any suffix.
        threads: of one run; of all that ExecuTorch runs in this process.
        offsets: activation point -> what the caller takes to have been added to qexp's codes; with any, the file that gives
            codes is loaded.

    Raises:
        UserError: there is no such file.
    """
    path = path.with_suffix(PTE_CODES_SUFFIX if offsets else PTE_SUFFIX)
    if not path.exists():
        raise UserError("export.runtime", "executorch", allowed=f"a network that was written as {path.name}")
    with quiet():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path)
    forward, own = program.load_method("forward"), dict(_told(program, POINTS))
    order = [list(own).index(point) for point in offsets]
    moved = [wanted - own[point] for point, wanted in offsets.items()]

    def call(images: Tensor, with_codes: bool) -> list[Tensor]:
        parts = [forward.execute([part.contiguous()]) for part in images.split(MOST_IMAGES)]
        logits, *codes = (torch.cat(values) for values in zip(*parts, strict=True))
        chosen = zip(order, moved, strict=True) if with_codes else ()
        return [logits, *(codes[number].int() + by for number, by in chosen)]

    return call, lambda: frozenset(_told(program, INTEGERS))


def _told(program: Any, name: str) -> Any:
    """What a constant method of a file says."""
    return json.loads(program.load_method(name).execute([])[0])
