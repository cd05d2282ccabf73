"""Moving averages of weights, and labels that are mixed: what the loop makes of them, against plain loops written out here."""

import pytest
import torch
from torch.nn import functional as F

from qexp.base.types import Batch
from qexp.engine.optim import lr_at


def test_the_average_is_what_is_evaluated_and_stored(train, problem):
    model, ends = train(epochs=2, ema_decay=0.8)
    plain, without = train(epochs=2)
    assert problem.equal(model, plain), "an average leaves the training alone"
    assert not torch.equal(ends[-1].model_state["0.weight"], without[-1].model_state["0.weight"])
    assert list(ends[-1].model_state) == list(plain.state_dict())
    assert problem.stored(ends[-1].state).evaluated.keys() == plain.state_dict().keys()


def test_the_average_moves_as_written_out(train, problem):
    weights, statistics, counts = [], [], []

    def batches(epoch, first):
        for batch in problem.train_batches(epoch, first):
            yield batch
            weights.append(model[0].weight.detach().clone())
            statistics.append(model[1].running_var.clone())
            counts.append(int(model[1].num_batches_tracked))

    model = problem.network()
    _, ends = train(model, batches=batches, epochs=3, ema_decay=0.7)
    averages = [weights[0].double(), statistics[0].double()]
    for step in range(1, len(weights)):
        decay = min(0.7, (1 + step) / (10 + step))
        averages = [decay * a + (1 - decay) * w[step] for a, w in zip(averages, (weights, statistics), strict=True)]
    state = ends[-1].model_state
    assert torch.allclose(state["0.weight"].double(), averages[0], atol=1e-6)
    assert torch.allclose(state["1.running_var"].double(), averages[1], atol=1e-6)
    assert int(state["1.num_batches_tracked"]) == counts[-1] == 12


@pytest.mark.parametrize("accumulate", [1, 3])
def test_mixed_labels_share_the_loss(train, problem, accumulate):
    def mixed(epoch, first):
        for batch in problem.train_batches(epoch, first):
            yield batch._replace(mixed_with=batch.labels.flip(0), share=0.3)

    ours, ends = train(problem.network(norm=False), batches=mixed, epochs=2, accumulate=accumulate, label_smoothing=0.1)
    settings = problem.settings(epochs=2, label_smoothing=0.1)
    theirs = problem.network(norm=False)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    step = 0
    for epoch in (1, 2):
        total = correct = 0.0
        for batch in problem.train_batches(epoch):
            optimizer.param_groups[0]["lr"] = lr_at(step, problem.steps_per_epoch, settings)
            optimizer.zero_grad()
            logits = theirs(batch.images)
            targets = 0.3 * F.one_hot(batch.labels, 4) + 0.7 * F.one_hot(batch.labels.flip(0), 4)
            loss = F.cross_entropy(logits, targets, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            total, step = total + float(loss.detach()) * len(batch.labels), step + 1
            correct += int((logits.argmax(1) == batch.labels.flip(0)).sum())
    for name, value in theirs.state_dict().items():
        assert torch.allclose(value, ours.state_dict()[name], atol=1e-5), name
    assert ends[-1].train_loss == pytest.approx(total / 120, rel=1e-4)
    assert ends[-1].train_prec1 == pytest.approx(100 * correct / 120, abs=1)


def test_a_batch_is_unmixed_by_default():
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1)
    assert batch.mixed_with is None and batch.share == 1
