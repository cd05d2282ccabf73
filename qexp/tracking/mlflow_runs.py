"""One experiment's runs in MLflow, found again by the tag `qexp.run`, so that sending a row twice never makes a second run."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from qexp.tracking.environment import Process, now_ms
from qexp.tracking.ledger import Point
from qexp.tracking.mlflow_store import Store, import_mlflow
from qexp.tracking.rows import Row, Scalar

RUN_TAG = "qexp.run"
# What all of MLflow's own stores take, by its documentation.
METRICS_PER_BATCH, PARAMS_PER_BATCH, TAGS_PER_BATCH = 1000, 100, 100
PARAM_LENGTH, TAG_LENGTH = 6000, 5000
Item = TypeVar("Item")


class MlflowRuns:
    """Opens, feeds and closes the runs of one experiment; every call may raise what MLflow raises."""

    def __init__(self, store: Store) -> None:
        self._client, self._experiment = store.client, store.experiment_id
        self._mlflow = import_mlflow()
        self._ids: dict[str, str] = {}

    def open(self, row: Row) -> None:
        """Make the run of a `run` row, or set the run there is to RUNNING again; then its tags and parameters."""
        tags = self._tags(row)
        run_id = self._find(row["run"])
        if run_id is None:
            created = self._client.create_run(
                self._experiment, start_time=row["time_ms"], run_name=row["name"], tags={RUN_TAG: row["run"]}
            )
            run_id = self._ids[row["run"]] = created.info.run_id
            known = {}
        else:
            self._client.update_run(run_id, status="RUNNING", name=row["name"])
            known = self._client.get_run(run_id).data.params
        self._log_params(run_id, row["params"], known, tags)
        self._log_tags(run_id, tags)

    def log_texts(self, run: str, texts: Mapping[str, str]) -> None:
        """Store texts as artifacts of a run, by file name."""
        for name, text in texts.items():
            self._client.log_text(self._id(run), text, name)

    def log_files(self, run: str, paths: Iterable[str]) -> None:
        """Store files under `report/` of a run's artifacts; those that are gone are left out."""
        for path in paths:
            if Path(path).is_file():
                self._client.log_artifact(self._id(run), path, "report")

    def log_points(self, run: str, points: Iterable[Point]) -> None:
        """Log metrics at their own times, in as few requests as MLflow allows."""
        entities = [self._mlflow.entities.Metric(p.name, p.value, p.time_ms, p.step) for p in points]
        for part in _batches(entities, METRICS_PER_BATCH):
            self._client.log_batch(self._id(run), metrics=part, synchronous=True)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self._log_tags(self._id(run), tags)

    def close(self, run: str, status: str, time_ms: int) -> None:
        """End a run."""
        self._client.set_terminated(self._id(run), status=status, end_time=time_ms)

    def close_dead(self, last_ms: Mapping[str, int]) -> list[str]:
        """Set to KILLED the runs that this machine's dead processes left RUNNING; returns their keys.

        Args:
            last_ms: run key -> time of its last row, which is when such a run ended as far as anyone knows.
        """
        killed = []
        here = Process.current().host.replace("'", "")
        query = f"attributes.status = 'RUNNING' and tags.`qexp.host` = '{here}'"
        for run in self._search(query):
            tags = run.data.tags
            process = Process(tags["qexp.host"], int(tags.get("qexp.pid", 0)), tags.get("qexp.process_start", ""))
            if process.pid and process.dead:
                key = tags.get(RUN_TAG, "")
                self._client.set_terminated(run.info.run_id, status="KILLED", end_time=last_ms.get(key, now_ms()))
                killed.append(key)
        return killed

    def _id(self, run: str) -> str:
        """MLflow's id of a run; one whose `run` row is not in the journal gets a bare run, which nobody would end."""
        found = self._find(run)
        if found is None:
            parent = run.partition("/")[0] if "/" in run else None
            self.open({"run": run, "parent": parent, "name": run, "params": {}, "tags": {}, "time_ms": now_ms()})
            self.close(run, "FINISHED", now_ms())
        return self._ids[run]

    def _find(self, run: str) -> str | None:
        """MLflow's id of the run with this key, None where there is none; a deleted one comes back."""
        if run not in self._ids:
            found = next(iter(self._search(f"tags.`{RUN_TAG}` = '{run}'", deleted=True)), None)
            if found is None:
                return None
            if found.info.lifecycle_stage == "deleted":
                self._client.restore_run(found.info.run_id)
            self._ids[run] = found.info.run_id
        return self._ids[run]

    def _search(self, query: str, *, deleted: bool = False) -> list:
        """All runs of the experiment that a query matches, the oldest first."""
        view = self._mlflow.entities.ViewType
        found, token = [], None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                query,
                run_view_type=view.ALL if deleted else view.ACTIVE_ONLY,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found.extend(page)
            token = page.token
            if not token:
                return found

    def _tags(self, row: Row) -> dict[str, str]:
        """All tags of a run: the row's own, and those by which it is found, nested and known to be alive."""
        tags = {key: _text(value) for key, value in row["tags"].items()}
        tags[RUN_TAG] = row["run"]
        tags["mlflow.user"] = _user()
        if process := row.get("process"):
            tags |= {"qexp.host": process["host"], "qexp.pid": str(process["pid"]), "qexp.process_start": process["start"]}
        if row["parent"] is not None:
            tags["mlflow.parentRunId"] = self._id(row["parent"])
        return tags

    def _log_params(self, run_id: str, params: Mapping[str, Scalar], known: Mapping[str, str], tags: dict[str, str]) -> None:
        """Log the parameters that the run lacks. MLflow refuses to change one and to keep a long one: tags say so instead."""
        full = {key: _text(value) for key, value in params.items()}
        texts = {key: text[:PARAM_LENGTH] for key, text in full.items()}
        if truncated := [key for key, text in full.items() if len(text) > PARAM_LENGTH]:
            tags["qexp.truncated_params"] = ", ".join(truncated)
        if changed := [f"{key}={texts[key]}" for key in texts if key in known and known[key] != texts[key]]:
            tags["qexp.later_params"] = ", ".join(changed)
        fresh = [self._mlflow.entities.Param(key, text) for key, text in texts.items() if key not in known]
        for part in _batches(fresh, PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=part, synchronous=True)

    def _log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, cut to MLflow's length."""
        entities = [self._mlflow.entities.RunTag(key, value[:TAG_LENGTH]) for key, value in tags.items()]
        for part in _batches(entities, TAGS_PER_BATCH):
            self._client.log_batch(run_id, tags=part, synchronous=True)


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut into parts of `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _text(value: object) -> str:
    """A parameter as it is typed on the command line (`true`, `null`), a text as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def _user() -> str:
    """Who runs this, as MLflow's own client would say; `unknown` for a number without a name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
