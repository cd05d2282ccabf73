"""The weights of an epoch on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from qexp.base.errors import UserError
from qexp.engine.state import FitState
from qexp.engine.trajectory import TrajectoryStore


def test_weights_that_were_changed_on_disk_are_refused(tmp_path):
    training = TrajectoryStore(tmp_path).open("abc123")
    training.begin(identity={}, config={}, versions={}, epochs=2)
    for epoch in (1, 2):
        state = FitState(epoch=epoch, model={"w": torch.full((2, 3), float(epoch))}, optimizer={}, scaler={}, rng=[])
        training.save_epoch(state, {"loss": 1.0}, keep=True)
    path = training.folder / "epochs" / "0001.safetensors"
    save_file({**load_file(path), "w": torch.zeros(2, 3)}, path)
    assert training.epochs() == [1, 2] and training.load_epoch(2)["w"].sum() == 12
    with pytest.raises(UserError, match=r"training=abc123: .*0001.safetensors was changed.*qexp.trainings remove=abc123"):
        training.load_epoch(1)
    lines = [{key: value for key, value in line.items() if key != "weights_hash"} for line in training.log()]
    (training.folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training.load_epoch(1)["w"].sum() == 0  # a store of before knows no hash
