import math

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import Batch
from qexp.engine import predictions
from qexp.engine.evaluate import evaluate


@pytest.fixture
def nets(problem):
    return {name: problem.network(seed=seed).eval() for seed, name in enumerate(("a", "b"))}


class Fixed(nn.Module):
    """Returns given logits, in turn."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits[: len(images)]


def score(logits, labels, **options):
    index = torch.arange(len(labels))
    batch = Batch(torch.zeros(len(labels), 1), torch.tensor(labels), index, len(labels))
    net = Fixed(torch.as_tensor(logits)).eval()
    return evaluate({"net": net}, [batch], class_count=net.logits.shape[1], **options)["net"]


def test_metrics_are_torchs(problem, nets):
    evaluations = evaluate(nets, problem.eval_batches(), class_count=4)
    with torch.no_grad():
        logits = nets["b"](problem.images)
    metrics = evaluations["b"].metrics
    assert metrics.n == 120
    assert metrics.prec1 == 100 * (logits.argmax(1) == problem.labels).sum().item() / 120
    assert metrics.prec5 == 100
    assert metrics.loss == pytest.approx(nn.functional.cross_entropy(logits, problem.labels).item(), rel=1e-6)
    assert (metrics.kl, metrics.logit_sqnr_db, metrics.finite) == (None, None, True)


def test_prec5_counts_the_first_five():
    logits = torch.arange(8.0).repeat(4, 1)
    metrics = score(logits, [7, 3, 2, 0]).metrics
    assert (metrics.prec1, metrics.prec5) == (25, 50)


@pytest.mark.parametrize("by_name", [True, False])
def test_kl_and_sqnr_against_a_reference(problem, nets, by_name):
    reference = "a"
    if not by_name:
        reference = evaluate({"a": nets["a"]}, problem.eval_batches(), class_count=4, keep_logits=True)["a"].logits
        assert reference.shape == (120, 4)
        assert reference.dtype == torch.float32
    evaluations = evaluate(nets, problem.eval_batches(), class_count=4, reference=reference)
    with torch.no_grad():
        p, q = (nets[name](problem.images).double() for name in "ab")
    kl = nn.functional.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean").item()
    assert evaluations["b"].metrics.kl == pytest.approx(kl, rel=1e-5)
    sqnr_db = 10 * math.log10((p.square().sum() / (p - q).square().sum()).item())
    assert evaluations["b"].metrics.logit_sqnr_db == pytest.approx(sqnr_db, rel=1e-5)
    assert (evaluations["a"].metrics.kl, evaluations["a"].metrics.logit_sqnr_db) == (0, None)
    assert list(evaluations) == ["a", "b"]


def test_digest_is_of_the_bits(problem, nets):
    def digest(net, size=50):
        return evaluate({"x": net}, problem.eval_batches(size), class_count=4)["x"].digest

    assert digest(nets["a"]) != digest(nets["b"])
    assert digest(nets["a"]) == digest(problem.network(seed=0).eval())
    bias = nets["a"][-1].bias
    with torch.no_grad():
        bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    assert digest(nets["a"]) != digest(problem.network(seed=0).eval())


def test_digest_knows_neither_batches_nor_their_order():
    logits, labels = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(40, dtype=torch.int64)
    digests = set()
    for sizes, order in ((40, torch.arange(40)), (7, torch.arange(40)), (7, torch.arange(39, -1, -1))):
        batches = [Batch(logits[i], labels[i], i, len(i)) for i in order.split(sizes)]
        evaluation = evaluate({"x": nn.Identity().eval()}, batches, class_count=3)["x"]
        digests.add(evaluation.digest)
        assert evaluation.predictions.index.tolist() == list(range(40))
    assert len(digests) == 1
    flipped = logits.clone()
    flipped[[3, 9]] *= -1
    batches = [Batch(flipped, labels, torch.arange(40), 40)]
    assert evaluate({"x": nn.Identity().eval()}, batches, class_count=3)["x"].digest not in digests


def test_nan_is_wrong_and_infinity_is_told():
    nan, inf = math.nan, math.inf
    evaluation = score([[nan, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, inf, 0.0]], [0, 1, 1])
    assert evaluation.metrics.prec1 == pytest.approx(200 / 3)
    assert not evaluation.metrics.finite
    assert math.isnan(evaluation.metrics.loss)
    assert evaluation.predictions.top5[0].tolist() == [-1, -1, -1]
    alike = score([[-inf, 0.0, 1.0]], [2], reference=torch.tensor([[-inf, 0.0, 1.0]]))
    assert alike.metrics.kl == 0


def test_training_mode_is_refused(problem, nets):
    nets["b"][1].train()
    with pytest.raises(RuntimeError, match=r"b is in training mode \(1\)"):
        evaluate(nets, problem.eval_batches(), class_count=4)


def test_a_network_that_writes_its_buffers_is_refused(problem, nets):
    class Polluting(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            norm = self.inner[1]
            nn.functional.batch_norm(self.inner[0](x), norm.running_mean, norm.running_var, training=True)
            return self.inner(x)

    with pytest.raises(RuntimeError, match=r"changed buffers.*inner\.1\.running_mean"):
        evaluate({"p": Polluting(nets["a"]).eval()}, problem.eval_batches(), class_count=4)


def test_evaluating_changes_nothing(problem, nets):
    before = {name: value.clone() for name, value in nets["a"].state_dict().items()}
    evaluate(nets, problem.eval_batches(), class_count=4)
    assert all(torch.equal(value, before[name]) for name, value in nets["a"].state_dict().items())


def test_the_wrong_number_of_classes_is_named(problem, nets):
    with pytest.raises(UserError, match=r"a with logits \[50, 4\].*\[N, 10\]"):
        evaluate(nets, problem.eval_batches(), class_count=10)


def test_an_image_scored_twice_is_our_own_fault(problem, nets):
    twice = [*problem.eval_batches(), *problem.eval_batches()]
    with pytest.raises(AssertionError, match="twice"):
        evaluate(nets, twice, class_count=4)


def test_a_tuple_stands_for_its_first_output(problem, nets):
    class Tuple(nn.Module):
        def forward(self, x):
            return nets["a"](x), None

    evaluations = evaluate({"t": Tuple().eval(), "a": nets["a"]}, problem.eval_batches(), class_count=4)
    assert evaluations["t"].digest == evaluations["a"].digest


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_scored(half):
    evaluation = score(torch.tensor([[0.0, 1.0, 2.0]], dtype=half), [2], keep_logits=True)
    assert evaluation.metrics.prec1 == 100
    assert evaluation.logits.dtype == torch.float32


def test_predictions_survive_the_disk(tmp_path, problem, nets):
    kept = evaluate(nets, problem.eval_batches(), class_count=4)["a"]
    path = tmp_path / "a.safetensors"
    predictions.save(path, kept.predictions)
    loaded = predictions.load(path)
    for name, value in vars(kept.predictions).items():
        assert torch.equal(getattr(loaded, name), value)
        assert getattr(loaded, name).dtype == value.dtype
    assert 100 * loaded.right.double().mean().item() == pytest.approx(kept.metrics.prec1)
    assert path.stat().st_size < 120 * 20 + 600
    assert loaded.top5.dtype == torch.int16
