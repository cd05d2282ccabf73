"""An exported network as a version of a registered model in MLflow, with its signature and an example of its input.

The version's files lie among the artifacts of the variant's run, in MLflow's own format for ONNX, so that `mlflow models serve`
runs them with ONNX Runtime. A version is found again by the digest of its file: a row that is sent twice makes one version.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexp.base.files import hash_file
from qexp.tracking.mlflow_store import import_mlflow
from qexp.tracking.rows import Row

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE_TAG, RUN_TAG = "qexp.file", "qexp.run"
# As qexp runs it: on CPUs without VNNI, ONNX Runtime's default sums saturate at 16 bits.
_SESSION = {"extra_session_config": {"session.x64quantprecision": "1"}}


def register(client: MlflowClient, run_id: str, row: Row) -> None:
    """Register the model version of a `model` row; does nothing where it exists, or where its file has gone or changed.

    Args:
        client: of the store.
        run_id: MLflow's id of the row's run.
        row: of `qexp.tracking.rows.model_row`.
    """
    mlflow = import_mlflow()
    path, example = Path(row["path"]), Path(row["example"])
    if not path.is_file() or not example.is_file() or hash_file(path) != row["digest"] or _is_there(client, row):
        return
    folder = f"model/{row['digest']}"
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "model"
        _save(path, example, saved)
        client.log_artifacts(run_id, str(saved), folder)
    try:
        client.create_registered_model(row["name"])
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{folder}"
    tags = {FILE_TAG: row["digest"], RUN_TAG: row["run"]}
    client.create_model_version(row["name"], source=source, run_id=run_id, tags=tags)


def _is_there(client: MlflowClient, row: Row) -> bool:
    """True where the registered model has a version of that file."""
    name = row["name"].replace("'", "''")
    return any(version.tags.get(FILE_TAG) == row["digest"] for version in client.search_model_versions(f"name='{name}'"))


def _save(path: Path, example: Path, folder: Path) -> None:
    """MLflow's folder of a model: the file, its inputs and outputs, an example, and the packages that serving it needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's about type hints of its own
        import mlflow.onnx
        import mlflow.pyfunc  # which mlflow.onnx would load later
        from mlflow.models import infer_signature

    import numpy as np

    with np.load(example) as arrays:
        images, logits = arrays["images"], arrays["logits"]
    inputs: dict[str, Any] = {"images": images}
    mlflow.onnx.save_model(
        path.read_bytes(),
        str(folder),
        signature=infer_signature(inputs, {"logits": logits}),
        input_example=inputs,
        pip_requirements=mlflow.onnx.get_default_pip_requirements(),  # given, it starts no process to infer them
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options=_SESSION,
        save_as_external_data=False,
    )
