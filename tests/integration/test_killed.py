"""A training that is killed without warning, and the same command again."""

import csv
import json
import signal
from pathlib import Path


def numbers(runs):
    """What was measured, without times: (variant's key, epoch) -> everything that the weights decide."""
    (folder,) = Path(runs, "trainings").iterdir()
    rows = [json.loads(line) for path in sorted(folder.glob("variants/*.jsonl")) for line in path.read_text().splitlines()]
    kept = ("prec1", "prec5", "loss", "kl", "digest", "predictions")
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    curve = [(line["epoch"], line["train_loss"], line["train_prec1"], line["lr"]) for line in log]
    return {(row["variant_key"], row["epoch"]): [row[key] for key in kept] for row in rows}, curve


def test_kill_minus_9_costs_nothing_but_time(process, cli, tiny):
    network = next(text for text in tiny if text.startswith("model.factory=")).replace(":tiny", ":Mortal")
    options = [text for text in tiny if not text.startswith("model.factory=")]
    command = [*options, network, "train.epochs=3", "bits=4", "mode=int,half", "deterministic=true", "-m"]
    killed = process("qexp.train", *command, MORTAL_STEP="50")  # of 60, in the third epoch
    assert killed.returncode == -signal.SIGKILL
    before, _ = numbers("runs")
    assert sorted({epoch for _, epoch in before}) == [1, 2]
    listed = process("qexp.trainings")
    assert "2/3" in listed.stdout and "running" in listed.stdout
    again = cli(*command)
    assert again.code == 0, again.err
    assert "epoch 3/3" in again.out and "epoch 2/3" not in again.out
    assert cli(*command, "runs_dir=undisturbed").code == 0
    assert numbers("runs") == numbers("undisturbed")
    with open("results/digits/table.csv") as handle:
        assert {(row["epoch"], row["state"]) for row in csv.DictReader(handle)} == {("3", "done")}
