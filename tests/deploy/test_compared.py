"""Files of other writers: what they take is understood, they are scored like any network, and what does not fit is refused."""

import csv
import json
import runpy
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.files import hash_file
from qexp.deploy.compared import digests_of
from qexp.deploy.foreign import open_foreign
from qexp.deploy.foreign_runs import Counted, check_runs, files_with
from qexp.deploy.tflite.run import TfliteSession

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'qexp[deploy]'")
onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'qexp[deploy]'")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

NETWORKS = Path(__file__).parents[1] / "networks.py"
SHAPE, CLASSES = (1, 8, 8), 10
FLOAT = Path("runs/exports/digits/fp32/network.onnx")


@pytest.fixture
def run(cli, tiny):
    """Run the command on a small network, without timing it."""
    torch.manual_seed(0)
    network = runpy.run_path(str(NETWORKS))["tiny"](CLASSES, 1)
    network[1].running_var.uniform_(0.5, 2)
    torch.save(network.state_dict(), "checkpoint.pt")
    return lambda *overrides: cli("checkpoint=checkpoint.pt", *tiny, "export.cost=false", *overrides, verb="export")


@pytest.fixture
def images():
    return torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(1))


def rows():
    with open("results/digits/compared.csv") as handle:
        return {row["name"]: row for row in csv.DictReader(handle)}


def quantize_static(source, target, images, form):
    """What ONNX Runtime's own tool makes of a float file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._left = iter([images.numpy()])

        def get_next(self):
            given = next(self._left, None)
            return None if given is None else {"images": given}

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, target, Reader(), quant_format=QuantFormat[form], per_channel=True, **types)


def network(folder, *nodes, source, target, constants=()):
    """A file with these nodes around a linear layer of all pixels: `pixels` [N, 64] -> `scores` [N, 10]."""
    weight = np.random.default_rng(0).normal(size=(64, CLASSES)).astype(np.float32)
    layer = helper.make_node("MatMul", ["pixels", "weight"], ["scores"])
    first, last = [node for node in nodes if "pixels" in node.output], [node for node in nodes if "scores" in node.input]
    before = [node for node in nodes if node not in last and node not in first]
    known = [numpy_helper.from_array(weight, "weight"), *(numpy_helper.from_array(value, name) for name, value in constants)]
    graph = helper.make_graph([*before, *first, layer, *last], "g", [source], [target], known)
    path = folder / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path, torch.from_numpy(weight)


def end(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


FLAT = ("flat", np.array([-1, 64], np.int64))


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT8])
@pytest.mark.parametrize("batch", ["N", 3])
def test_codes_channels_last_and_a_batch_of_its_own(kind, batch, images, tmp_path):
    zero_point = np.array(120 if kind == TensorProto.UINT8 else -5, np.uint8 if kind == TensorProto.UINT8 else np.int8)
    path, weight = network(
        tmp_path,
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
        helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["planes", "flat"], ["pixels"]),
        source=end("codes", kind, batch, 8, 8, 1),
        target=end("scores", TensorProto.FLOAT, batch, CLASSES),
        constants=[FLAT, ("scale", np.array(0.02, np.float32)), ("zero", zero_point)],
    )
    file = open_foreign(path, image_shape=SHAPE, num_classes=CLASSES)
    low, high = (0, 255) if kind == TensorProto.UINT8 else (-128, 127)
    codes = (images / 0.02).round().add(float(zero_point)).clamp(low, high)
    expected = (codes - float(zero_point)).mul(0.02).flatten(1) @ weight
    torch.testing.assert_close(file.run(images), expected, rtol=1e-5, atol=1e-4)
    assert file.channels_last and file.batch == (3 if batch == 3 else None) and (file.num_layers, file.num_integer) == (1, 0)
    assert file.takes == f"{zero_point.dtype} NHWC{', 3 at a time' if batch == 3 else ''}"


def test_logits_as_codes_and_maps_of_one_pixel(images, tmp_path):
    path, weight = network(
        tmp_path,
        helper.make_node("Reshape", ["images", "flat"], ["pixels"]),
        helper.make_node("QuantizeLinear", ["scores", "scale", "zero"], ["codes"]),
        source=end("images", TensorProto.FLOAT, "N", *SHAPE),
        target=end("codes", TensorProto.INT8, "N", CLASSES),
        constants=[FLAT, ("scale", np.array(0.5, np.float32)), ("zero", np.array(3, np.int8))],
    )
    logits = open_foreign(path, image_shape=SHAPE, num_classes=CLASSES).run(images)
    expected = ((images.flatten(1) @ weight / 0.5).round() + 3).clamp(-128, 127).sub(3) * 0.5
    assert (logits - expected).abs().max() <= 0.5 and (logits == expected).float().mean() > 0.95


def test_weights_in_a_file_beside_are_part_of_it(images, tmp_path):
    source, target = end("images", TensorProto.FLOAT, "N", *SHAPE), end("scores", TensorProto.FLOAT, "N", CLASSES)
    reshape = helper.make_node("Reshape", ["images", "flat"], ["pixels"])
    path, weight = network(tmp_path, reshape, source=source, target=target, constants=[FLAT])
    assert digests_of([path]) == [hash_file(path)] and files_with(path) == [path]
    options = {"location": "weights.bin", "size_threshold": 1024}
    onnx.save(onnx.load(path), path, save_as_external_data=True, **options)
    file = open_foreign(path, image_shape=SHAPE, num_classes=CLASSES)
    torch.testing.assert_close(file.run(images), images.flatten(1) @ weight, rtol=1e-5, atol=1e-4)
    assert (file.num_layers, file.num_integer) == (1, 0)
    assert files_with(path) == [path, tmp_path / "weights.bin"]
    before = digests_of([path])
    (tmp_path / "weights.bin").write_bytes(weight.neg().numpy().tobytes())
    assert digests_of([path]) != before


@pytest.mark.parametrize(
    ("sizes", "batch", "classes", "expected"),
    [
        ([-1, 64], "N", CLASSES, None),
        ([1, 64], 1, CLASSES, None),  # of one image at a time, and says so
        ([1, 64], "N", CLASSES, "It says: "),  # does not say so
        ([7, 64], "N", CLASSES, "It says: "),  # loads, and runs on neither
    ],
)
def test_what_loads_but_does_not_run_is_refused(sizes, batch, classes, expected, tmp_path):
    source, target = end("images", TensorProto.FLOAT, batch, *SHAPE), end("scores", TensorProto.FLOAT, batch, CLASSES)
    reshape = helper.make_node("Reshape", ["images", "sizes"], ["pixels"])
    path, _ = network(tmp_path, reshape, source=source, target=target, constants=[("sizes", np.array(sizes, np.int64))])
    file = open_foreign(path, image_shape=SHAPE, num_classes=CLASSES)
    if expected is None:
        check_runs(file, torch.zeros(1, *SHAPE), classes)
        return
    with pytest.raises(UserError, match="allowed is a file that runs on these images, several at a time") as refusal:
        check_runs(file, torch.zeros(1, *SHAPE), classes)
    assert expected in str(refusal.value) and str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("shape", "kind", "classes", "expected"),
    [
        ((3, 8, 8), TensorProto.FLOAT, CLASSES, "It takes images [N, 3, 8, 8] float32"),
        ((1, 9, 8), TensorProto.FLOAT, CLASSES, "one input, images [N, 1, 8, 8] or [N, 8, 8, 1], and logits [N, 10]"),
        (SHAPE, TensorProto.FLOAT, 7, "and gives scores [N, 10] float32"),
        (SHAPE, TensorProto.UINT8, CLASSES, "Nothing in the file says what the numbers of images mean"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_shapes(shape, kind, classes, expected, tmp_path):
    cast = helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT)
    reshape = helper.make_node("Reshape", ["values", "flat"], ["pixels"])
    flat = ("flat", np.array([-1, 64], np.int64))
    source, target = end("images", kind, "N", *shape), end("scores", TensorProto.FLOAT, "N", CLASSES)
    path, _ = network(tmp_path, cast, reshape, source=source, target=target, constants=[flat])
    with pytest.raises(UserError, match="export.compare=") as refusal:
        open_foreign(path, image_shape=SHAPE, num_classes=classes)
    assert expected in str(refusal.value)


@pytest.mark.slow
def test_rows_are_what_the_files_give(run, images):
    assert run().code == 0
    for form in ("QDQ", "QOperator"):
        quantize_static(FLOAT, f"{form}.onnx", images, form)
    own = next(path for path in Path("runs/exports/digits").glob("*/network.onnx") if path != FLOAT)
    shutil.copy(own, "own.onnx")
    done = run(f"export.compare=[{FLOAT},own.onnx,QDQ.onnx,QOperator.onnx]")
    assert done.code == 0, done.err
    table = rows()
    assert list(table) == ["fp32", "simulated", "onnxruntime", "network.onnx", "own.onnx", "QDQ.onnx", "QOperator.onnx"]
    fp32, own_row, static = table["network.onnx"], table["own.onnx"], table["QDQ.onnx"]
    assert (fp32["prec1"], fp32["equal_fp32"], fp32["num_integer"]) == (table["fp32"]["prec1"], "100", "0")
    assert float(fp32["vs_fp32"]) == 0 and float(fp32["p_fp32"]) == 1
    same = ("prec1", "prec5", "vs_simulated", "equal_simulated", "num_integer", "num_layers", "size_bytes")
    assert [own_row[name] for name in same] == [table["onnxruntime"][name] for name in same]
    assert own_row["num_integer"] == own_row["num_layers"] == "2"
    assert static["num_integer"] == table["QOperator.onnx"]["num_integer"] == "2" and static["median_ms"] == ""
    for row in table.values():
        assert row["n"] == "360" and float(row["prec1_low"]) < float(row["prec1"]) < float(row["prec1_high"])
        if row["vs_fp32"]:
            assert float(row["vs_fp32"]) == pytest.approx(float(row["prec1"]) - float(table["fp32"]["prec1"]))
    assert "Files of other writers" in Path("results/digits/stages.md").read_text()
    assert "QDQ.onnx" in Path("results/digits/report.html").read_text() and "equal simulated %" in done.out

    def exports():
        lines = Path("runs/journal/digits.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == "export"]

    before = len(exports())
    again = run("export.compare=QDQ.onnx")
    assert again.code == 0 and "nothing to do" in again.out and len(exports()) == before, "known by its bytes"
    quantize_static(FLOAT, "QDQ.onnx", 3 * images, "QDQ")
    assert run("export.compare=QDQ.onnx", "export.cost=true", "export.repeats=2", "export.warmup=0").code == 0
    assert list(rows()) == ["fp32", "simulated", "onnxruntime", "QDQ.onnx"] and float(rows()["QDQ.onnx"]["times_fp32"]) > 0


def test_a_tflite_file_of_codes(run, images):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'qexp[deploy]'")
    runtimes = "export.runtime=[onnxruntime,litert]"
    assert run(runtimes, "export.integer_io=true", "evaluate.num_images=20").code == 0
    shutil.copy(next(Path("runs/exports/digits").glob("*int8_io/network.tflite")), "codes.tflite")
    done = run(runtimes, "export.compare=codes.tflite", "evaluate.num_images=20")
    assert done.code == 0, done.err
    table = rows()
    assert list(table) == ["fp32", "simulated", "litert", "codes.tflite"]
    row = table["codes.tflite"]
    assert row["takes"].startswith("int8 NHWC") and row["runtime"] == "litert"
    assert row["num_integer"] == row["num_layers"] == table["litert"]["num_layers"] == "3", "its pooling is a convolution"
    file = open_foreign(Path("codes.tflite"), image_shape=SHAPE, num_classes=CLASSES)
    expected = torch.cat([TfliteSession(Path("codes.tflite")).run(one)[0] for one in images.split(1)])
    torch.testing.assert_close(file.run(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["export.compare=nowhere.onnx"], "export.compare=nowhere.onnx: allowed is a file that exists"),
        (["export.compare=[checkpoint.pt]"], "export.compare=checkpoint.pt: allowed is files that end with .onnx or .tflite"),
        (["export.compare=theirs.tflite"], "export.runtime=[onnxruntime,litert] runs it"),
        (["export.compare=torn.onnx"], "export.compare=torn.onnx: allowed is a file that onnxruntime loads"),
    ],
)
def test_refused_before_anything_starts(words, expected, run):
    Path("torn.onnx").write_bytes(b"torn")
    done = run(*words)
    assert done.code == 2 and expected in done.err and not Path("runs").exists(), done.err


def test_inputs_beyond_codes_and_ties_for_the_fifth_place_are_noted(run, images, tmp_path):
    assert run("evaluate.num_images=20").code == 0
    path, _ = network(
        tmp_path,
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
        helper.make_node("Reshape", ["values", "flat"], ["pixels"]),
        helper.make_node("Mul", ["scores", "nothing"], ["equal"]),
        source=end("codes", TensorProto.INT8, "N", *SHAPE),
        target=end("equal", TensorProto.FLOAT, "N", CLASSES),
        constants=[
            FLAT, ("scale", np.array(1e-3, np.float32)), ("zero", np.array(0, np.int8)), ("nothing", np.array(0, np.float32)),
        ],
    )  # fmt: skip
    counted = Counted(open_foreign(path, image_shape=SHAPE, num_classes=CLASSES))
    for part in images.split(3):
        counted(part)
    codes = images.mul(1e3).round()
    assert counted.beyond_pct == pytest.approx(100 * ((codes < -128) | (codes > 127)).double().mean().item(), abs=0.3)
    done = run(f"export.compare={path}", "evaluate.num_images=20")
    assert done.code == 0, done.err
    note = rows()["other.onnx"]["note"]
    assert "% of the inputs are beyond what the file's codes hold" in note
    assert "Prec@5 is arbitrary for 100 % of the images: their label ties for the fifth place" in note
    assert rows()["fp32"]["note"] == ""


def test_a_file_that_predicts_something_else_has_a_note(run):
    assert run("evaluate.num_images=20").code == 0
    model = onnx.load(FLOAT)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[:] = ["before"]
    model.graph.node.append(helper.make_node("Neg", ["before"], ["logits"]))
    onnx.save(model, "turned.onnx")
    done = run("export.compare=turned.onnx", "evaluate.num_images=20")
    assert done.code == 0 and "was it made for images prepared in another way?" in rows()["turned.onnx"]["note"]
