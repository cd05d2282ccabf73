"""Programs of torch.compile against the networks that they run; one small graph, compiled once."""

import copy

import pytest
import torch
from torch import nn

from qexp.base.compiler import cxx_compiler
from qexp.base.types import Batch
from qexp.engine.compiled import CannotCompile, Programs, check_alike
from qexp.engine.evaluate import evaluate

pytestmark = pytest.mark.skipif(cxx_compiler() is None, reason="a program needs a C++ compiler")
IMAGES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """Parameters, buffers, and a tensor that is neither."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.shift = torch.full((1,), 0.1)

    def forward(self, images):
        return self.head((self.norm(self.conv(images)).relu() + self.shift).mean((2, 3)))


def drawn(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Small().eval()
        network.norm.running_mean.normal_()
        network.shift = torch.rand(1)
        return network


@pytest.fixture(scope="module")
def programs():
    return Programs()


@pytest.fixture(scope="module")
def run(programs):
    return programs.run_of(drawn(0), IMAGES)


@torch.no_grad()
def test_one_program_runs_all_networks_of_a_graph(programs, run):
    for network in (drawn(1), copy.deepcopy(run.model)):
        other = programs.run_of(network, IMAGES)
        torch.testing.assert_close(other(IMAGES), network(IMAGES), rtol=1e-5, atol=1e-6)
        check_alike(other, IMAGES)
    assert len(programs) == 1


@torch.no_grad()
def test_it_follows_weights_that_are_overwritten_in_place(run):
    before = run(IMAGES).clone()
    run.model.head.weight.mul_(2)
    torch.testing.assert_close(run(IMAGES), run.model(IMAGES), rtol=1e-5, atol=1e-6)
    assert (run(IMAGES) - before).abs().max() > 0.1
    run.model.head.weight.div_(2)


def test_a_smaller_batch_is_the_networks_own_to_the_last_bit(run):
    labels, whole = torch.arange(20) % 5, torch.cat([IMAGES, IMAGES[:8] + 1])
    batches = [
        Batch(whole[first : first + 12], labels[first : first + 12], torch.arange(first, min(first + 12, 20)), 20)
        for first in (0, 12)
    ]
    models = {"net": run.model}
    eager = evaluate(models, batches, class_count=5, keep_logits=True)["net"]
    compiled = evaluate(models, batches, class_count=5, keep_logits=True, runs={"net": run})["net"]
    assert torch.equal(compiled.logits[12:], eager.logits[12:])
    torch.testing.assert_close(compiled.logits, eager.logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(compiled.predictions.top5, eager.predictions.top5)


def test_a_program_of_other_weights_is_not_taken(programs, run):
    other = programs.run_of(drawn(1), IMAGES)
    other.model = drawn(2)  # whose tensors the program does not have
    with pytest.raises(CannotCompile, match="of the largest"):
        check_alike(other, IMAGES)


class Deciding(Small):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)


class Counting(Small):
    def forward(self, images):
        self.norm.num_batches_tracked.add_(1)
        return super().forward(images)


def test_what_cannot_be_compiled_says_why(programs):
    with pytest.raises(CannotCompile, match="It raised"):
        programs.run_of(Deciding().eval(), IMAGES)


def test_a_written_buffer_is_seen(programs):
    network = Counting().eval()
    run = programs.run_of(network, IMAGES)
    batch = Batch(IMAGES, torch.arange(12) % 5, torch.arange(12), 12)
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        evaluate({"net": network}, [batch], class_count=5, runs={"net": run})
