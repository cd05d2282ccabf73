"""examples/*.ipynb: committed without outputs, and every cell runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def test_there_are_examples():
    assert [path.stem for path in EXAMPLES] == ["compare_your_quantizer", "read_a_sweep"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, monkeypatch, capfd, cli):
    genuine = subprocess.run

    def run(command, **options):
        """A command of qexp runs in this process, which has imported torch already; any other as it is."""
        if command[:3] != [sys.executable, "-m", "qexp.train"]:
            return genuine(command, **options)
        done = cli(*command[3:])
        assert done.code == 0, done.out + done.err

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.syspath_prepend(str(Path.cwd()))  # where a notebook's kernel looks first
    monkeypatch.delitem(sys.modules, "midrise", raising=False)
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), "commit it without outputs"
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells, start=1):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), namespace)
    said, last = capfd.readouterr().out, namespace["last"]
    assert "fp32" in said and len(last) > 6 and last["n"].eq(360).all() and last["ci_low"].notna().sum() == len(last) - 1
    assert isinstance(namespace["figure"], Figure) and list(Path.cwd().glob("*.png"))
    if path.stem == "read_a_sweep":
        assert namespace["frame"].query("variant != 'fp32'")["ci_low"].notna().all(), "the bands that it draws"
    if path.stem == "compare_your_quantizer":
        assert set(last["quant"]) >= {"mid_rise", "affine"} and namespace["sqnr"].notna().all(axis=None)
