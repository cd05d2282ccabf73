"""Kept copies of a network as MLflow's `LoggedModel`s, and data sets as inputs of runs, so that MLflow ranks copies itself.

A kept copy is a variant after an epoch whose predictions stay on disk (`evaluate.keep`). It is found again by its tag
`qexp.copy`, so that a row that is sent twice makes one model; its weights stay in `runs/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexp.tracking.mlflow_store import Store, import_mlflow
from qexp.tracking.rows import Row, Scalar

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, LoggedModel

COPY_TAG = "qexp.copy"
_PARAMS = (
    "variant",
    "bits",
    "mode",
    "policy",
    "quant",
    "granularity",
    "activation_bits",
    "seed",
    "epoch",
    "split",
    "n",
    "size_bytes",
)
_MAX_DIGEST = 36  # characters, by MLflow's table


def copy_key(row: Row) -> str:
    """Names the copy that a `record` row scored: run, epoch and split; empty where its predictions are not kept."""
    return f"{row['run']}/{row['epoch']}/{row['split']}" if row.get("predictions") else ""


def scored_set(row: Row) -> tuple[str, str]:
    """Name and digest of the images that a `record` row is of: the split, and the hash of the data's content and splits."""
    return row["split"], str(row["data_hash"])[:_MAX_DIGEST]


def data_inputs(params: Mapping[str, Scalar], tags: Mapping[str, str], *, is_training: bool) -> list[DatasetInput]:
    """The data set of a run, twice where it trains: what it is trained on and what it is scored on.

    Args:
        params: of the run, flat.
        tags: of the run.
        is_training: it belongs to a training, and is no variant of it.
    """
    entities = import_mlflow().entities
    name, digest = params.get("data.name"), tags.get("qexp.data_hash")
    if not isinstance(name, str) or not digest:
        return []
    source = json.dumps({"uri": params.get("data.root") or name})
    splits = [("train", "training")] * is_training + [(str(params.get("evaluate.split") or "test"), "evaluation")]
    return [
        entities.DatasetInput(
            entities.Dataset(split, digest[:_MAX_DIGEST], "local", source, profile=json.dumps({"data": name, "split": split})),
            [entities.InputTag("mlflow.data.context", context)],
        )
        for split, context in splits
    ]


class KeptCopies:
    """The logged models of one experiment; every call may raise what MLflow raises.

    Args:
        store: the experiment.
    """

    def __init__(self, store: Store) -> None:
        self._client, self._experiment = store.client, store.experiment_id
        self._ids: dict[str, str] | None = None
        self._begun: set[str] = set()

    def id_of(self, run_id: str, row: Row) -> str:
        """MLflow's id of the copy that a `record` row scored, which is made unless it is there.

        Args:
            run_id: MLflow's id of the row's run.
            row: with predictions that are kept.
        """
        if self._ids is None:
            made = [model for model in self._search() if COPY_TAG in model.tags]
            self._ids = {model.tags[COPY_TAG]: model.model_id for model in made}
            ready = {model.model_id for model in made if str(model.status) == "READY"}
            self._begun = {*self._ids.values()} - ready  # by processes that were killed before they had linked it
        key = copy_key(row)
        if key not in self._ids:
            self._ids[key] = self._make(run_id, key, row)
        elif self._ids[key] in self._begun:
            self._finish(run_id, self._ids[key], row)
            self._begun.discard(self._ids[key])
        return self._ids[key]

    def _make(self, run_id: str, key: str, row: Row) -> str:
        params = {name: str(row[name]) for name in _PARAMS if row.get(name) is not None}
        model = self._client.create_logged_model(
            self._experiment,
            name=re.sub(r"[/:.%\"']", "-", f"{row['variant']} epoch {row['epoch']}"),
            source_run_id=run_id,
            tags={COPY_TAG: key, "qexp.training": row["training"]},
            params=params,
            model_type="qexp",
        )
        self._finish(run_id, model.model_id, row)
        return str(model.model_id)

    def _finish(self, run_id: str, model_id: str, row: Row) -> None:
        entities = import_mlflow().entities
        self._client.log_outputs(run_id, [entities.LoggedModelOutput(model_id, step=row["epoch"])])
        self._client.finalize_logged_model(model_id, "READY")

    def _search(self) -> list[LoggedModel]:
        """All logged models of the experiment, the newest first, so that of two for one copy the older is taken."""
        models: list[LoggedModel] = []
        token: Any = None
        while True:
            page = self._client.search_logged_models([self._experiment], page_token=token)
            models.extend(page)
            token = page.token
            if not token:
                return models
