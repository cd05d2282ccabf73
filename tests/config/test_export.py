"""What `export.*` takes, and that what is refused with the settings is what a file cannot hold."""

import pytest

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.config.export import FILE_GRANULARITIES, ExportSettings
from qexp.deploy.weight_codes import has_codes
from qexp.quant.scheme_table import GRANULARITIES, SCHEMES


def test_the_early_check_refuses_what_has_no_codes():
    held = {(s, g) for s in SCHEMES for g in GRANULARITIES if has_codes(QuantSpec(scheme=s, bits=8, granularity=g))}
    assert held == {
        (scheme, granularity) for scheme in SCHEMES.names_where(lambda row: row.onnx) for granularity in FILE_GRANULARITIES
    }


def test_one_runtime_or_several(tmp_path):
    assert ExportSettings().runtimes == ("onnxruntime",)
    assert ExportSettings(runtime=["torch", "openvino"]).runtimes == ("torch", "openvino")
    assert ExportSettings(runtime=[]).runtimes == ()
    assert str(ExportSettings().folder_of("runs", "mnist")) == "runs/exports/mnist"
    assert ExportSettings(folder=str(tmp_path)).folder_of("runs", "mnist") == tmp_path / "mnist"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runtime", "tensorrt"),
        ("integer_io", True),
        ("runtime", ["torch", "torch"]),
        ("batch_sizes", []),
        ("batch_sizes", [0]),
        ("batch_sizes", [4, 4]),
        ("threads", 0),
        ("repeats", 0),
        ("warmup", -1),
        ("num_compared", 0),
        ("register", "a/b"),
        ("register", " "),
    ],
)
def test_what_is_refused(key, value):
    with pytest.raises(UserError, match=f"^export.{key}="):
        ExportSettings(**{key: value})
