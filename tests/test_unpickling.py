"""Nothing in the project unpickles: a file or a message from elsewhere may name any function to call."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# torch's object collectives unpickle what they receive; qexp.base.dist has others of the first name.
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "cloudpickle.load", "cloudpickle.loads",
    "broadcast_object_list", "gather_object", "scatter_object_list",
}  # fmt: skip


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {item.arg: ast.unparse(item.value) for item in node.keywords}


def faults(path):
    for name, keywords in calls(path):
        last = name.rpartition(".")[2]
        if name in FORBIDDEN or last in FORBIDDEN:
            yield f"{path.name}: {name}"
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield f"{path.name}: torch.load without weights_only=True"


def test_checkpoints_and_messages_are_read_as_data():
    files = [path for folder in ("qexp", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 90
    assert [fault for path in files for fault in faults(path)] == []
    assert sum(name == "torch.load" for path in files for name, _ in calls(path)) >= 3


def test_a_slip_is_found(tmp_path):
    path = tmp_path / "slip.py"
    path.write_text("import torch, pickle\ntorch.load('a.pt')\npickle.load(open('b'))\ndist.broadcast_object_list(box)\n")
    assert len(list(faults(path))) == 3
