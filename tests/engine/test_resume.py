import pytest
import torch

from qexp.engine import resume
from qexp.engine.resume import ResumeFiles
from qexp.engine.state import FitState


class Crash(BaseException):
    """As a kill would be."""


@pytest.fixture
def crash_at(monkeypatch):
    """Where the next `save` ends."""
    point = []

    def crash(name):
        if name in point:
            raise Crash

    monkeypatch.setattr(resume, "fault_point", crash)
    return point


def save(files, *epochs):
    for epoch in epochs:
        files.save(FitState(epoch=epoch, model={"w": torch.full((2,), float(epoch))}, optimizer={}, scaler={}, rng=[]))


def test_a_damaged_last_does_not_push_out_the_state_before_it(tmp_path, crash_at):
    save(ResumeFiles(tmp_path), 1, 2)
    (tmp_path / "last.pt").write_bytes(b"half")
    again = ResumeFiles(tmp_path)
    assert again.load().epoch == 1
    crash_at.append("state.rotated")
    with pytest.raises(Crash):
        save(again, 2)
    (tmp_path / "next.pt").unlink()
    assert again.load().epoch == 1


def test_a_crash_between_the_renames_leaves_the_newest_state(tmp_path, crash_at):
    files = ResumeFiles(tmp_path)
    for epoch, point in enumerate(("state.written", "state.rotated", "state.rotated", "state.written"), 1):
        crash_at[:] = [point]
        with pytest.raises(Crash):
            save(files, epoch)
        assert files.load().epoch == epoch and files.find(epoch).model["w"][0] == epoch
    crash_at.clear()
    save(files, 5)
    assert files.load().epoch == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt"]
    save(files, 6)
    assert files.find(5).epoch == 5
    files.drop()
    assert files.load() is None and not list(tmp_path.iterdir())
