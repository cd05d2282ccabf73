"""A disk that is full when a checkpoint is saved: a limit on the size of files, which the system enforces as it does space."""

import re
from pathlib import Path

import pytest

from qexp.engine.trajectory import TrajectoryStore

FILLING = Path(__file__).with_name("filling.py")
EPOCHS = 3


def folder(runs) -> Path:
    (found,) = Path(runs, "trainings").iterdir()
    return found


@pytest.fixture(scope="module")
def command(tiny):
    kept = [text for text in tiny if not text.startswith("model.factory=")]
    return [*kept, f"model.factory={FILLING}:Filling", f"train.epochs={EPOCHS}", "bits=4", "deterministic=true"]


@pytest.fixture(scope="module")
def undisturbed(command, cli, numbers, tmp_path_factory):
    """The numbers of a run that nothing happened to."""
    runs = tmp_path_factory.mktemp("undisturbed")
    done = cli(*command, f"runs_dir={runs}", f"results_dir={runs}/results")
    assert done.code == 0, done.err
    return numbers(runs)


# The weights take 0.8 MB, the state for a resume 1.6 MB.
@pytest.mark.parametrize("limit, suffix", [("400000", ".safetensors"), ("1100000", ".pt")], ids=["weights", "resume state"])
def test_the_same_command_goes_on_once_there_is_space(command, undisturbed, numbers, warm, cli, limit, suffix):
    failed = warm.start(*command, FULL_STEP="25", FULL_BYTES=limit)  # of 60, in the second epoch
    assert failed.wait() == 1
    assert "Traceback" not in failed.text
    (said,) = re.findall(r"failed: SaveError: (\S+) could not be saved: File too large\. (.*)", failed.text)
    assert Path(said[0]).is_relative_to(folder("runs")) and said[0].endswith(suffix)
    assert said[1] == (
        "What was saved before is intact. Raise the limit on the size of a file (ulimit -f) or free space and run the same "
        "command again: it goes on from there."
    )
    assert "1 of 1 trainings failed; the same command tries them again" in failed.text

    training = TrajectoryStore("runs").open(folder("runs").name)
    assert training.resume_state().epoch == 1
    assert training.load_epoch(1).keys() == training.resume_state().model.keys()
    assert training.log()[0]["epoch"] == 1
    assert not [path for path in Path("runs").rglob("*") if path.name.endswith(".tmp")]

    again = cli(*command)
    assert again.code == 0, again.err
    assert f"epoch {EPOCHS}/{EPOCHS}" in again.out and f"epoch 1/{EPOCHS}" not in again.out
    assert numbers("runs") == undisturbed
