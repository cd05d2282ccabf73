"""A user's own scheme, from the command line: swept, profiled, exported where it may be; refused in one line, or keyed anew."""

import csv
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "own-quantizer.md").read_text(encoding="utf-8")
SOURCE = re.search(r"```python\n(# midrise.py\n.*?)```", PAGE, re.DOTALL)[1]
OWN = ("quant=custom", "quant.factory=midrise.py:scheme", "name=mine")


@pytest.fixture
def write():
    """Writes the page's file, changed."""

    def write(*changes):
        text = SOURCE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        Path("midrise.py").write_text(text, encoding="utf-8")

    return write


def table():
    with Path("results/mine/table.csv").open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_it_is_swept_like_ours_and_an_edit_is_measured_anew(cli, tiny, write):
    write(("from qexp.quant.levels", "import helper_of_own_scheme  # noqa: F401\nfrom qexp.quant.levels"))
    settings = ("quant.weight.granularity=per_channel", "calibrate.weights=mse")
    rows = []
    for bits, text in (("4,8", "HALF = 0.5"), ("4", "HALF = 0.5"), ("4", "HALF = 0.5  # exactly")):
        Path("helper_of_own_scheme.py").write_text(text)
        done = cli(*tiny, *OWN, *settings, f"bits={bits}", "-m")
        assert done.code == 0 and "scheme mid_rise per_channel" in done.out and "midrise.py" not in done.out, done.err
        rows.append(table())
    assert {row["quant"] for row in rows[0].values()} == {"", "mid_rise"}
    label = "W4 int mid_rise per_channel w_mse"
    assert rows[0] == rows[1], "measured once"
    keys = {row["variant_key"] for row in rows[2].values() if row["variant"].startswith(label)}
    assert keys - {rows[0][label]["variant_key"]}, "what the file imports is part of the key"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("        rounds=True, even", "        even"), "missing 1 required keyword-only argument: 'rounds'"),
        (('zero="never"', 'zero="always"'), "Its row says zero=always: allowed is never"),
        (("return {", "return 1 / 0, {"), "It raised ZeroDivisionError: division by zero"),
        (("class MidRise", "1 / 0\n\n\nclass MidRise"), "Importing it raised ZeroDivisionError"),
        (("    return SchemeInfo(", "    return dict("), "It returned dict."),
    ],
    ids=["omitted", "contradiction", "raises", "import_raises", "no_row"],
)
def test_what_does_not_hold_is_one_mistake_and_nothing_runs(change, said, cli, tiny, write):
    write(change)
    done = cli(*tiny, *OWN, "bits=4,8", "-m")
    assert done.code == 2 and said in done.err, done.err
    assert done.err.count("quant.factory=midrise.py:scheme") == 1 and "Traceback" not in done.err
    assert not Path("runs/trainings").exists() and not Path("runs/journal").exists() and not Path("results").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("quant=custom",), "quant.factory=None: allowed is package.module:function or file.py:function"),
        (("quant=affine", "quant.factory=midrise.py:scheme"), "allowed is null. It belongs to quant=custom."),
        ((*OWN, "quant.weight.rounding=floor"), "rounding=floor: allowed is half_even for quant=mid_rise"),
        ((*OWN, "bits=1"), "bits=1: allowed is at least 2 for quant=mid_rise"),
        ((*OWN, "qat=ste"), "quant=custom: allowed is one of symmetric_restricted"),
    ],
)
def test_what_its_row_does_not_have_is_refused(overrides, said, cli, tiny, write):
    """What a scheme whose author had forgotten two tables was given without a word."""
    write(
        ("min_bits=1, max", "min_bits=2, max"),
        ("control_min_bits=1", "control_min_bits=2"),
        ("rounds=True, even_steps=True", "rounds=False, even_steps=False"),
    )
    done = cli(*tiny, *overrides)
    assert done.code == 2 and said in done.err, done.err
    if "bits=1" in overrides:
        done = cli(*tiny, *OWN, "calibrate.weights=kl")
        assert done.code and "allowed is minmax, percentile or mse for quant=mid_rise" in done.err, done.err


def test_it_is_profiled_and_exported_where_a_file_can_hold_it(cli, tiny, write):
    write()
    assert cli(*tiny, "float_only=true", "name=float").code == 0
    (checkpoint,) = Path("runs/trainings").glob("*/epochs/0001.safetensors")
    given = [word for word in tiny if not word.startswith("train=")] + [f"checkpoint={checkpoint}", *OWN, "bits=4"]
    done = cli(*given, "task=profile", verb="analyze")
    assert done.code == 0 and "mid_rise" in done.out and "midrise.py" not in done.out, done.err
    done = cli(*given, verb="export")
    assert done.code == 2 and "quant=mid_rise: allowed is affine, symmetric" in done.err, done.err
    write(  # as symmetric_restricted
        ("- 0.5", ""), ("codes + 0.5", "codes"), ("full", "restricted"), ("2 ** (spec.bits - 1)", "(2 ** (spec.bits - 1) - 1)"),
        ('zero="never"', 'zero="always"'), ("min_bits=1, max", "min_bits=2, max"), ("control_min_bits=1", "control_min_bits=2"),
        ("onnx=False", "onnx=True"),
    )  # fmt: skip
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'qexp[deploy]'")
    done = cli(*given, "export.cost=false", "export.runtime=onnxruntime", "export.num_compared=8", verb="export")
    assert done.code == 0 and list(Path("runs/exports/mine").glob("*mid_rise*/network.onnx")), done.err
