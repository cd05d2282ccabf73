"""What test_qat_ranks.py runs on each of two ranks, and once more in one process: python qat_ranks.py JOBS.json OUT_DIR."""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from qexp.base import dist
from qexp.engine.fit import fit
from qexp.engine.seed import seed_everything
from qexp.experiment.evaluator import Evaluator
from qexp.experiment.prepare import Preparer
from qexp.experiment.qat_training import QatTraining
from qexp.sweep.check import check

CPU = torch.device("cpu")


def copied(state):
    return {name: value.detach().clone() for name, value in state.items()}


def train(values):
    """Calibrate, train and evaluate one job, whose float training is stored."""
    prepared = Preparer().prepare(check([values], "train"))
    config, bundle = prepared.config, prepared.bundle
    seed_everything(config.seed, config.deterministic)
    qat = QatTraining(prepared, CPU)
    module, hooks = qat.begin(calibrate=True)
    begun, last, losses = copied(module.state_dict()), {}, []

    def after_step():
        hooks.after_step()
        last.update(copied(module.state_dict()))  # before rank 0's state overwrites the others'

    batches = {"batch_size": config.recipe.batch_size, "seed": config.seed, "device": CPU}
    fit(
        module,
        lambda epoch, first: bundle.train_batches(
            epoch=epoch, rank=dist.rank(), world_size=dist.world_size(), start_step=first, **batches
        ),
        config.recipe,
        steps_per_epoch=bundle.steps_per_epoch(config.recipe.batch_size),
        device=CPU,
        hooks=replace(hooks, after_step=after_step),
        on_epoch_end=lambda end: losses.append(end.train_loss),
        progress=False,
    )
    state = copied(module.state_dict())
    fixed = {name: value + 0.01 if name.endswith("bias") else value for name, value in begun.items()}
    scored = Evaluator(prepared, CPU, qat).score(fixed, prepared.variants, {})
    return {
        "begun": begun,
        "last": last,
        "state": state,
        "losses": losses,
        "converted": dict(qat.convert(state).state),
        "scored": [[item.evaluation.digest, item.evaluation.metrics.prec1, list(item.alarms)] for item in scored],
    }


if __name__ == "__main__":
    warnings.simplefilter("error")
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if dist.launched():
        dist.init_from_env("cpu")
    found = {name: train(values) for name, values in jobs.items()}
    torch.save(found, out / f"{dist.world_size()}.{dist.rank()}.pt")
