"""A range method of the user's own, that of the page about it, from the command line to the table."""

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-range-method.md"
(OWN,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
GRID = ("quant=affine", "bits=8", "quant.activation.bits=8")
CUSTOM = ("calibrate=custom", "calibrate.factory=own.py:sigmas")


@pytest.fixture
def own():
    path = Path("own.py")
    path.write_text(OWN)
    return path


def records():
    """What was recorded of quantized copies; tables show those with equal numbers once."""
    lines = [line for path in Path("runs").glob("*/*/variants/*.jsonl") for line in path.read_text().splitlines()]
    return [row for row in map(json.loads, lines) if row["variant"] != "fp32"]


def test_it_is_compared_with_ours_and_its_source_is_part_of_the_key(cli, tiny, own):
    cases = f"cases=[['calibrate=minmax'],{[*CUSTOM]},{['calibrate.weights=custom', CUSTOM[1]]}]"
    done = cli(*tiny, *GRID, cases, "-m")
    assert done.code == 0, done.err
    assert {row["variant"]: row["ranges"] for row in records()} == {
        "W8A8 int affine": "weights minmax, activations minmax",
        "W8A8 int affine sigmas": "weights minmax, activations sigmas",
        "W8A8 int affine w_sigmas": "weights sigmas, activations minmax",
    }
    assert len({row["logit_sqnr_db"] for row in records()}) == 3 and "W8A8 int sigmas" in done.out
    Path("elsewhere").mkdir()
    Path("elsewhere/own.py").write_text(OWN)  # wherever the file lies
    assert "nothing to do" in cli(*tiny, *GRID, CUSTOM[0], "calibrate.factory=elsewhere/own.py:sigmas").out
    own.write_text(OWN.replace("1.5 *", "2 *"))
    assert "nothing to do" not in cli(*tiny, *GRID, *CUSTOM).out
    assert [row["variant"] for row in records()].count("W8A8 int affine sigmas") == 2  # of two keys


def test_its_ranges_are_taken_from_a_file(cli, tiny, own):
    assert cli(*tiny, *GRID, *CUSTOM).code == 0
    (file,) = Path("runs").glob("trainings/*/calibrations/*/*.safetensors")
    own.unlink()
    done = cli(*tiny, *GRID, f"calibrate.file={file}")
    assert done.code == 0, done.err
    first, second = records()
    assert "sigmas of file" in second["ranges"] and first["logit_sqnr_db"] == second["logit_sqnr_db"]


@pytest.mark.parametrize(
    "change, more, message",
    [
        (("        for_weights=True,\n", ""), (), "missing 1 required keyword-only argument: 'for_weights'"),
        (("1.5 *", "spec.bits *"), (), "Its row says depends_on_grid=false: allowed is true"),
        (("for_weights=True", "for_weights=False"), ("calibrate.weights=custom",), "calibrate.weights=custom: allowed is one"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_hold_starts_nothing(cli, tiny, own, change, more, message):
    own.write_text(OWN.replace(*change, 1))
    done = cli(*tiny, *GRID, *CUSTOM, *more)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err, done.err
    assert not Path("runs/trainings").exists()


def test_scaled_channels_are_refused_where_its_row_says_so(cli, tiny, own):
    own.write_text(OWN.replace("scaled_channels=True", "scaled_channels=False"))
    done = cli(*tiny, *GRID, *CUSTOM, "correct.fold_bn=true", "correct.equalize=true")
    assert done.code == 2 and "calibrate=sigmas: allowed is another method with correct.equalize" in done.err, done.err
