"""Networks compiled by `torch.compile`: one program for all networks of one graph, whose tensors are its arguments.

`torch.export` writes down the graph of a network with every parameter, buffer and constant as an argument. Networks whose graphs
read alike, literals and shapes included, differ in those tensors alone; so Inductor compiles the first of them and its program
runs the others, whatever their weights. Torch keeps compiled code on disk (`TORCHINDUCTOR_CACHE_DIR`; by default in the folder
for temporary files), where the next process finds it. Freezing is off: it would make constants of the weights.

A program is made for one shape of batch. Batches of another, the last smaller one, run the network itself; rejected: a second
program, and padding, whose images a network might mix with the others. Before a program is used, its logits of a few images are
compared with the network's own (`TOLERANCE`): for the first two networks of each state that differ in their weights alone, and
for every network that was built anew. So what runs is what the weights-in-use probe looks at.

Rejected: `torch.func.functional_call` within `torch.compile`, which with torch 2.13 gave wrong logits for the second network that
it was tried with; one program for each copy, which compiles anew where modules are built anew; ONNX Runtime, which needs another
file for each graph.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from qexp.base.errors import raised
from qexp.base.files import hash_json
from qexp.base.outputs import main_output

# Largest difference of a logit, as a share of the largest logit of the batch: sums in another order, layer after layer.
TOLERANCE = 1e-4
COMPARED = 8  # images of a batch whose logits are compared
Program = Callable[..., tuple[Tensor, ...]]  # (*tensors, images) -> (logits, ...)


class CannotCompile(Exception):
    """A network that no program can be made for, or whose program computes something else; says why."""


class Run:
    """A network that a program runs: images [N, C, H, W] -> what the network returns first, for batches of one shape.

    Args:
        model: the network; it runs other batches itself.
        program: of its graph.
        tensors: of the network, in the program's order; overwritten in place, they stay the program's arguments.
        shape: of the images that the program was made for.
    """

    def __init__(self, model: nn.Module, program: Program, tensors: tuple[Tensor, ...], shape: torch.Size) -> None:
        self.model, self.program, self.shape = model, program, shape
        self._tensors = tensors

    def __call__(self, images: Tensor) -> object:
        """What the network returns; of several results the first alone where the program runs."""
        return self.program(*self._tensors, images)[0] if images.shape == self.shape else self.model(images)


class Programs:
    """The compiled programs of a process, by graph."""

    def __init__(self) -> None:
        self._programs: dict[str, Program] = {}

    def __len__(self) -> int:
        return len(self._programs)

    def run_of(self, model: nn.Module, images: Tensor) -> Run:
        """The network as its program runs it; compiled if no network of this graph was.

        Args:
            model: in eval mode; its program is the same as long as only its tensors' values change.
            images: [N, C, H, W], of the shape that batches will have.

        Raises:
            CannotCompile: its forward decides by values, writes a buffer, or is beyond torch.export or Inductor.
        """
        try:
            with _quiet(), torch.no_grad():
                exported = torch.export.export(model, (images,))
            tensors = _tensors(exported, model)
            graph = exported.graph_module  # as text it has the shapes, strides and devices of all tensors
            key = hash_json(graph.print_readable(print_output=False, include_stride=True, include_device=True))
            known = self._programs.get(key)
            run = Run(model, _compiled(graph) if known is None else known, tensors, images.shape)
            if known is None:
                with _quiet(), torch.inference_mode():
                    run(images)  # which compiles
        except CannotCompile:
            raise
        except Exception as error:  # torch's compilers fail in many ways, and eager is the answer to all of them
            raise CannotCompile(raised(error)) from error
        self._programs[key] = run.program
        return run


@torch.inference_mode()
def check_alike(run: Run, images: Tensor, within: float = TOLERANCE, *, typical: bool = False) -> None:
    """Raise CannotCompile unless the program's logits of the first images are the network's own, but for rounding.

    max |compiled - eager| <= within * max |eager|, over the logits of `COMPARED` images; NaN and infinity at the same places.

    Args:
        run: of `Programs.run_of`.
        images: a batch of the shape that the program was made for.
        within: share of the largest logit.
        typical: ask it of the median image alone, where rounding may lead an image far away, but not all of them.

    Raises:
        CannotCompile: they differ by more; says by how much.
    """
    expected = main_output(run.model(images[:COMPARED])).float()
    logits = main_output(run(images)).float()[:COMPARED]
    if not torch.equal(expected.isfinite(), logits.isfinite()):
        raise CannotCompile("its program has numbers where the network has none, or none where it has some.")
    differences = (logits - expected).nan_to_num(0, 0, 0).abs().amax(1)
    difference = float(differences.median() if typical else differences.max())
    largest = float(expected.nan_to_num(0, 0, 0).abs().max())
    if difference > within * largest:
        share = difference / largest if largest else float("inf")
        raise CannotCompile(f"its program's logits differ by {share:.1e} of the largest, where {within:.1e} is allowed.")


def seconds_of(run: Callable[[Tensor], object], images: Tensor, times: int = 3) -> float:
    """Seconds of one batch, the shortest of several after one that does not count.

    Args:
        run: a network.
        images: [N, C, H, W].
        times: that it is measured.
    """
    seconds = []
    with torch.inference_mode():
        for _ in range(times + 1):
            begin = time.perf_counter()
            main_output(run(images)).flatten()[:1].cpu()  # waits for a GPU
            seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def _tensors(exported: torch.export.ExportedProgram, model: nn.Module) -> tuple[Tensor, ...]:
    """The network's own tensors, as the exported graph takes them before the images."""
    signature = exported.graph_signature
    # Graphs of some releases write in place instead, which evaluations see in the buffers.
    if written := [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]:
        raise CannotCompile(f"its forward writes {', '.join(written[:3])}.")
    known: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    known |= dict(model.named_buffers(remove_duplicate=False)) | dict(exported.constants)
    *specs, images = signature.input_specs
    names = [spec.target for spec in specs]
    if images.target is not None or not all(isinstance(known.get(name or ""), Tensor) for name in names):
        raise CannotCompile("it reads more than its tensors and the images.")
    return tuple(known[name or ""] for name in names)


def _compiled(graph: fx.GraphModule) -> Program:
    """The graph as a compiled function of its placeholders."""
    graph.graph.set_codegen(fx.graph.CodeGen())  # arguments and results as they are, without torch.export's packing
    graph.recompile()
    compiled: Program = torch.compile(graph, dynamic=False, fullgraph=True)
    return compiled


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's compiler warns of in itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
