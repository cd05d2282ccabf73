"""An exported file becomes a version of a registered model, once, with its signature and an input."""

import json
from pathlib import Path

import numpy as np
import pytest

from qexp.base.files import hash_file
from qexp.tracking import rows
from qexp.tracking.sender import Sender

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'qexp[deploy]'")


@pytest.fixture
def model(tmp_path):
    """A file that doubles two numbers, and an example."""
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    node = make.make_node("Add", ["images", "images"], ["logits"])
    ends = [make.make_tensor_value_info(name, float32, ["N", 2]) for name in ("images", "logits")]
    path = tmp_path / "network.onnx"
    onnx.save(make.make_model(make.make_graph([node], "g", ends[:1], ends[1:]), ir_version=9), path)
    images = np.array([[1.0, 2.0]], dtype=np.float32)
    np.savez(tmp_path / "example.npz", images=images, logits=2 * images)
    return path


@pytest.fixture
def send(journal, store, sweep, model):
    """Append a `model` row behind a sweep's rows, and send the journal."""

    def run(name="net", digest=None):
        journal.append([] if journal.path.exists() else sweep(epochs=1))
        example, digest = model.with_name("example.npz"), digest or hash_file(model)
        journal.append([rows.model_row("a1b2c3d4/keyW8", name=name, path=model, example=example, digest=digest)])
        return Sender(journal, experiment="exp", settings=store.settings, runs_dir=store.runs_dir).catch_up()

    return run


def test_a_version_with_signature_and_example(send, store):
    assert send() > 0
    ((name, version, source, run_id),) = store.query("select name, version, source, run_id from model_versions")
    assert (name, version, run_id) == ("net", 1, store.runs()["a1b2c3d4/keyW8"][2])
    folder = Path(source.removeprefix("file://"))
    text = (folder / "MLmodel").read_text()
    assert '"name": "images"' in text and '"name": "logits"' in text and "x64quantprecision" in text
    assert json.loads((folder / "serving_input_example.json").read_text()) == {"inputs": {"images": [[1.0, 2.0]]}}
    assert (folder / "model.onnx").is_file() and not list(folder.glob("*.data"))


def test_the_same_file_is_one_version(send, store):
    send()
    send()
    send(name="another")
    assert store.query("select name, version from model_versions order by name") == [("another", 1), ("net", 1)]


def test_another_file_is_the_next_version_and_a_changed_one_is_left_out(send, store, model):
    send()
    before = hash_file(model)
    loaded = onnx.load(model)
    loaded.producer_name = "other"
    onnx.save(loaded, model)
    send(digest=before)
    assert store.count("model_versions") == 1
    send()
    assert store.query("select version from model_versions order by version") == [(1,), (2,)]
