import errno
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.train import TrajectorySettings
from qexp.engine import epoch_file
from qexp.engine.fit import fit
from qexp.engine.state import FitState
from qexp.engine.trajectory import TrajectoryStore

CPU = torch.device("cpu")
CONFIG = {"model": {"name": "resnet20"}, "data": {"name": "digits"}}


@pytest.fixture
def store(tmp_path):
    return TrajectoryStore(tmp_path / "runs")


@pytest.fixture
def begun(store):
    training = store.open("abc123")
    training.begin(identity={"seed": 0}, config=CONFIG, versions={"torch": torch.__version__}, epochs=3)
    return training


def state(epoch: int) -> FitState:
    weights = {"w": torch.full((2, 3), float(epoch)), "n": torch.tensor(epoch)}
    momentum = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return FitState(epoch=epoch, model=weights, optimizer=momentum, scaler={}, rng=[{"torch": torch.get_rng_state()}])


def save(training, *epochs, keep=True):
    for epoch in epochs:
        training.save_epoch(state(epoch), {"loss": 1 / epoch}, keep=keep)


def test_opening_touches_nothing(store):
    training = store.open("abc123")
    assert (training.epochs(), training.log(), training.is_complete, training.resume_state()) == ([], [], False, None)
    assert not store.runs_dir.exists()


def test_a_training_from_begin_to_end(begun, store):
    save(begun, 1, 2)
    assert begun.epochs() == [1, 2]
    assert begun.resume_state().epoch == 2
    assert not begun.is_complete
    save(begun, 3)
    begun.finish()
    assert begun.is_complete
    assert begun.load_epoch(2)["w"].tolist() == [[2.0] * 3] * 2
    assert begun.load_epoch(2)["n"].dtype == torch.int64
    assert [(line["epoch"], line["loss"]) for line in begun.log()] == [(epoch, 1 / epoch) for epoch in (1, 2, 3)]
    assert sorted(path.name for path in begun.folder.iterdir()) == ["epochs", "train.jsonl", "training.json"]
    assert [path.name for path in store.root.iterdir()] == ["abc123"]


def test_a_missing_last_epoch_makes_it_incomplete(begun):
    save(begun, 1, 2, 3)
    begun.finish()
    (begun.folder / "epochs" / "0003.safetensors").unlink()
    assert not begun.is_complete


@pytest.mark.parametrize(("keep", "stored"), [("all", [1, 2, 3, 4, 5]), ("every:2", [2, 4, 5]), ("last", [5])])
def test_keep_decides_what_stays(begun, keep, stored):
    settings = TrajectorySettings(keep=keep)
    for epoch in range(1, 6):
        save(begun, epoch, keep=settings.keeps(epoch, 5))
    assert begun.epochs() == stored


def test_an_epoch_that_is_not_kept_is_there_while_it_is_the_resume_state(begun):
    save(begun, 1, 2, 3, keep=False)
    assert begun.load_epoch(3)["w"][0, 0] == 3
    with pytest.raises(UserError, match="epoch=1: allowed is a stored epoch of training abc123: none"):
        begun.load_epoch(1)


@pytest.mark.parametrize("length", [0, 10, 700])
def test_a_truncated_last_falls_back_to_previous(begun, length, capsys):
    save(begun, 1, 2)
    last = begun.folder / "last.pt"
    last.write_bytes(last.read_bytes()[:length])
    assert begun.resume_state().epoch == 1
    assert "last.pt is damaged" in capsys.readouterr().err
    (begun.folder / "previous.pt").write_bytes(b"nothing")
    assert begun.resume_state() is None


def test_a_state_within_an_epoch_is_no_epoch(begun):
    save(begun, 1, 2, keep=False)
    begun.save_state(replace(state(2), step=7))
    assert (begun.resume_state().epoch, begun.resume_state().step) == (2, 7)
    assert begun.load_epoch(2)["w"][0, 0] == 2  # of previous.pt
    begun.save_state(replace(state(2), step=8))
    with pytest.raises(UserError, match="epoch=2"):
        begun.load_epoch(2)


def test_ranks_are_noted_as_they_change(begun):
    go_on = {"identity": {}, "config": CONFIG, "versions": {}, "epochs": 3}
    assert begun.world_sizes(1) == (1,)
    begun.begin(**go_on, world_size=1, start=state(1))
    assert begun.info["ranks"] == [{"epoch": 0, "step": 0, "world_size": 1}]
    begun.begin(**go_on, world_size=2, start=replace(state(1), step=5))
    assert (begun.world_sizes(1), begun.world_sizes(2)) == ((1,), (1, 2))
    begun.begin(**go_on, world_size=4, start=state(1))  # what the two had done was lost
    assert begun.world_sizes(2) == (1, 4)


def test_a_preempted_training_says_so_until_it_goes_on(begun, store):
    save(begun, 1)
    begun.mark_preempted("SIGTERM")
    assert "goes on after epoch 1\n" in (begun.folder / "PREEMPTED").read_text()
    assert store.summaries()[0]["status"] == "preempted"
    begun.begin(identity={}, config=CONFIG, versions={}, epochs=3, start=state(1))
    assert store.summaries()[0]["status"] == "running"


def test_a_truncated_epoch_is_not_stored(begun):
    save(begun, 1, 2)
    path = begun.folder / "epochs" / "0001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert begun.epochs() == [2]


def test_an_epoch_done_again_has_one_log_line(begun):
    save(begun, 1, 2, 3)
    save(begun, 2)
    assert [line["epoch"] for line in begun.log()] == [1, 2]


@pytest.mark.parametrize("writer", ["save_file", "torch.save"])
def test_a_full_disk_leaves_the_last_checkpoint(begun, monkeypatch, writer):
    save(begun, 1, 2)

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(epoch_file if writer == "save_file" else torch, writer.split(".")[-1], full)
    with pytest.raises(OSError, match="No space left"):
        save(begun, 3)
    monkeypatch.undo()
    assert begun.resume_state().epoch == 2
    assert [(line["epoch"], line["loss"]) for line in begun.log()[:2]] == [(1, 1.0), (2, 0.5)]
    assert not list(begun.folder.rglob("*.tmp"))
    save(begun, 3)
    assert begun.resume_state().epoch == 3


def test_a_real_training_resumes_from_disk(begun, problem):
    def save_all(training, until):
        def on_epoch_end(end):
            training.save_epoch(end.state, {"loss": end.train_loss}, keep=True)
            if end.epoch == until:
                raise KeyboardInterrupt

        return on_epoch_end

    def run(model, start, until=None):
        options = {"steps_per_epoch": problem.steps_per_epoch, "device": CPU, "progress": False}
        try:
            fit(model, problem.train_batches, problem.settings(), start=start, on_epoch_end=save_all(begun, until), **options)
        except KeyboardInterrupt:
            pass
        return model.state_dict()

    whole = run(problem.network(dropout=0.5), None)
    begun.discard()
    run(problem.network(dropout=0.5), None, until=2)
    resumed = run(problem.network(dropout=0.5, seed=7), begun.resume_state())
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert all(torch.equal(value, whole[name]) for name, value in begun.load_epoch(4).items())


def test_tied_and_channels_last_weights_are_stored(begun):
    tied = torch.arange(48.0).reshape(2, 3, 2, 4).contiguous(memory_format=torch.channels_last)
    saved = FitState(epoch=1, model={"a": tied, "b": tied, "c": tied[0]}, optimizer={}, scaler={}, rng=[])
    begun.save_epoch(saved, {}, keep=True)
    assert all(torch.equal(value, saved.model[name]) for name, value in begun.load_epoch(1).items())


def test_begin_keeps_the_first_description(begun, store):
    created = begun.info["created"]
    store.open("abc123").begin(identity={"seed": 9}, config={}, versions={}, epochs=9)
    assert (begun.info["created"], begun.info["epochs"], begun.info["status"]) == (created, 3, "running")


def test_list_find_and_remove(begun, store):
    save(begun, 1, 2)
    store.open("abd999").begin(identity={}, config=CONFIG, versions={}, epochs=1)
    row = next(row for row in store.summaries() if row["hash"] == "abc123")
    assert {key: row[key] for key in ("model", "data", "epochs_done", "epochs", "status")} == {
        "model": "resnet20", "data": "digits", "epochs_done": 2, "epochs": 3, "status": "running",
    }  # fmt: skip
    assert 0 < row["size_mib"] < 1
    with pytest.raises(UserError, match="training=ab: allowed is one of abc123, abd999"):
        store.find("ab")
    with pytest.raises(UserError, match="training=abc124: allowed is the hash of a stored training. Did you mean abc123"):
        store.remove("abc124")
    assert store.remove("abc") == "abc123"
    assert [row["hash"] for row in store.summaries()] == ["abd999"]
    assert begun.resume_state() is None


def test_a_training_at_work_is_not_removed(begun, store):
    with begun.lock(), pytest.raises(UserError, match="no process works on"):
        store.remove("abc123")
    assert begun.info


HOLDER = """
import sys, time
from qexp.engine.state import FitState
from qexp.engine.trajectory import TrajectoryStore
with TrajectoryStore(sys.argv[1]).open("abc123").lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_dead_process_is_free(begun, store, capsys):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(store.runs_dir)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError):
            store.remove("abc123")
        holder.kill()
        holder.wait()
        with begun.lock():
            pass


def test_waiting_for_the_lock_is_said(begun, capsys):
    import threading

    held, done = threading.Event(), threading.Event()

    def hold():
        with begun.lock():
            held.set()
            done.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    threading.Timer(0.2, done.set).start()
    with begun.lock():
        assert "Waiting for another process that works on training abc123" in capsys.readouterr().out
    other.join()


def test_discard_leaves_nothing(begun, store):
    save(begun, 1)
    begun.discard()
    begun.discard()
    assert not begun.folder.exists() and not list(begun.folder.parent.iterdir())


@pytest.mark.parametrize("file", ["training.json", "epochs/0003.safetensors", "last.pt"])
def test_what_cannot_be_read_is_not_trained_again(begun, file):
    save(begun, 1, 2, 3)
    path = begun.folder / file
    path.unlink()
    path.mkdir()  # stands for a file of another user's, which root may read
    with pytest.raises(UserError, match=f"{file}: allowed is what can be read"):
        begun.resume_state()
        begun.finish()


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', '{"config": "text"}', '{"identity": []}', "\x00"])
def test_one_damaged_training_takes_no_listing_with_it(begun, store, text):
    other = store.open("def456")
    other.begin(identity={"seed": 1}, config=CONFIG, versions={}, epochs=3)
    (begun.folder / "training.json").write_text(text)
    status = {row["hash"]: row["status"] for row in store.summaries()}
    assert status == {"abc123": "damaged", "def456": "running"}
    assert store.remove("abc123") == "abc123"


def test_a_damaged_training_is_not_trained_over(begun):
    (begun.folder / "training.json").write_text("{")
    with pytest.raises(UserError, match="training=abc123: .*training.json can be read. Remove it: python -m qexp.trainings"):
        _ = begun.is_complete
