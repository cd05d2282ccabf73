"""One experiment's runs in MLflow, found again by the tag `qexp.run`, so that sending a row twice never makes a second run."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qexp.tracking.changes import Point
from qexp.tracking.copies import KeptCopies, data_inputs, scored_set
from qexp.tracking.environment import now_ms
from qexp.tracking.mlflow_store import RUN_TAG, Store, import_mlflow
from qexp.tracking.process import Process
from qexp.tracking.registry import register
from qexp.tracking.rows import Row, Scalar
from qexp.tracking.run_tags import color, description, source_tags
from qexp.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

PROCESS_TAGS = ("qexp.host", "qexp.pid", "qexp.process_start")
# What all of MLflow's own stores take, by its documentation.
METRICS_PER_BATCH, PARAMS_PER_BATCH, TAGS_PER_BATCH = 1000, 100, 100
PARAM_LENGTH, TAG_LENGTH = 6000, 5000
Item = TypeVar("Item")


class MlflowRuns:
    """Opens, feeds and closes the runs of one experiment; every call may raise what MLflow raises.

    `duplicates` has MLflow's ids of runs that stand beside another of the same key. A slow server may make a run after its client
    gave up and asked again. Points may lie in either, so before the duplicates are deleted all must be due to be sent again.

    Args:
        store: the experiment.
        system_metrics: begun and ended with the runs; None measures nothing.
    """

    def __init__(self, store: Store, system_metrics: SystemMetrics | None = None) -> None:
        self.duplicates: set[str] = set()
        self._client, self._experiment = store.client, store.experiment_id
        self._mlflow = import_mlflow()
        self._ids: dict[str, str] = {}
        self._nested: dict[str, int] = {}
        self._copies, self._system_metrics = KeptCopies(store), system_metrics

    def open(self, row: Row) -> None:
        """Make the run of a `run` row, or set the run there is to RUNNING again; then its tags and parameters."""
        tags = self._tags(row)
        run_id = self._find(row["run"])
        if run_id is None:
            # With its process's tags at once: a run without them belongs to no process, and would stay RUNNING if we died here.
            first = {key: tags[key] for key in (RUN_TAG, *PROCESS_TAGS) if key in tags}
            # Description and colour too, once: a person may choose others, which a run that is opened again keeps.
            first |= {key: text[:TAG_LENGTH] for key, text in description(row).items()} | color(self._number(tags))
            created = self._client.create_run(self._experiment, start_time=row["time_ms"], run_name=row["name"], tags=first)
            run_id = self._ids[row["run"]] = created.info.run_id
            known = {}
        else:
            self._client.update_run(run_id, status="RUNNING", name=row["name"])
            known = self._client.get_run(run_id).data.params
        self._log_params(run_id, row["params"], known, tags)
        self._log_tags(run_id, tags)
        is_training = row["parent"] is None and row.get("planned_epochs") is not None
        if inputs := data_inputs(row["params"], row["tags"], is_training=is_training):
            self._client.log_inputs(run_id, inputs)
        self.follow(row)

    def follow(self, row: Row) -> None:
        """Measure the machine from now on, where that is asked for and the run is of the process that it is asked for."""
        if self._system_metrics is not None:
            self._system_metrics.begin(row, self._id)

    def log_texts(self, run: str, texts: Mapping[str, str]) -> None:
        """Store texts as artifacts of a run, by file name."""
        for name, text in texts.items():
            self._client.log_text(self._id(run), text, name)

    def log_files(self, run: str, paths: Iterable[str]) -> None:
        """Store files under `report/` of a run's artifacts; those that are gone are left out."""
        for path in paths:
            if Path(path).is_file():
                self._client.log_artifact(self._id(run), path, "report")

    def register(self, row: Row) -> None:
        """Make the version of a registered model that a `model` row asks for, unless it is there."""
        register(self._client, self._id(row["run"]), row)

    def log_points(self, run: str, points: Iterable[Point]) -> None:
        """Log metrics at their own times, in as few requests as MLflow allows; those of a kept copy are its model's too."""
        entities = [self._metric(run, point) for point in points]
        for part in _batches(entities, METRICS_PER_BATCH):
            self._client.log_batch(self._id(run), metrics=part, synchronous=True)

    def _metric(self, run: str, point: Point) -> Metric:
        metric: type[Metric] = self._mlflow.entities.Metric
        if point.copy is None:
            return metric(point.name, point.value, point.time_ms, point.step)
        name, digest = scored_set(point.copy)
        model = self._copies.id_of(self._id(run), point.copy)
        return metric(
            point.name, point.value, point.time_ms, point.step, model_id=model, dataset_name=name, dataset_digest=digest
        )

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self._log_tags(self._id(run), tags)

    def close(self, run: str, status: str, time_ms: int) -> None:
        """End a run."""
        if self._system_metrics is not None:
            self._system_metrics.end(run)
        self._client.set_terminated(self._id(run), status=status, end_time=time_ms)

    def close_dead(self, last_ms: Mapping[str, int], others: Iterable[str] = ()) -> list[str]:
        """Set to KILLED the runs that this machine's dead processes left RUNNING; returns their keys.

        Args:
            last_ms: run key -> time of its last row, which is when such a run ended as far as anyone knows.
            others: names of further experiments to look through; a run of theirs ended at its last point.
        """
        killed = []
        here = Process.current().host.replace("'", "")
        query = f"attributes.status = 'RUNNING' and tags.`qexp.host` = '{here}'"
        for run in self._search(query, experiments=[self._experiment, *self._existing(others)]):
            tags, own = run.data.tags, run.info.experiment_id == self._experiment
            process = Process(tags["qexp.host"], int(tags.get("qexp.pid", 0)), tags.get("qexp.process_start", ""))
            if not process.pid or not process.dead:
                continue
            key = tags.get(RUN_TAG, "")
            if own and key and self._find(key) != run.info.run_id:
                continue  # a duplicate, which is to be deleted
            ended = last_ms.get(key) if own else None
            self._client.set_terminated(run.info.run_id, status="KILLED", end_time=ended or self._last_point_ms(run))
            killed.append(key)
        return killed

    def delete_duplicates(self) -> None:
        """Delete what stands beside another run of the same key."""
        for run_id in sorted(self.duplicates):
            self._client.delete_run(run_id)
        self.duplicates.clear()

    def _existing(self, names: Iterable[str]) -> list[str]:
        """MLflow's ids of those of the named experiments that it has, without this one."""
        experiments = [self._client.get_experiment_by_name(name) for name in names]
        ids = [experiment.experiment_id for experiment in experiments if experiment is not None]
        return [experiment_id for experiment_id in ids if experiment_id != self._experiment]

    def _last_point_ms(self, run: Run) -> int:
        """When the last point of a run was measured, or when the run began."""
        histories = [self._client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
        return max((point.timestamp for points in histories for point in points), default=run.info.start_time)

    def _id(self, run: str) -> str:
        """MLflow's id of a run; one whose `run` row is not in the journal gets a bare run, ended at once."""
        if self._find(run) is None:
            parent = run.partition("/")[0] if "/" in run else None
            self.open({"run": run, "parent": parent, "name": run, "params": {}, "tags": {}, "time_ms": now_ms()})
            self.close(run, "FINISHED", now_ms())
        return self._ids[run]

    def _find(self, run: str) -> str | None:
        """MLflow's id of the run with this key, None where there is none; a deleted one comes back."""
        if run not in self._ids:
            matches = self._search(f"tags.`{RUN_TAG}` = '{run}'", deleted=True)
            if not matches:
                return None
            living = [match for match in matches if match.info.lifecycle_stage != "deleted"]
            if not living:
                self._client.restore_run(matches[0].info.run_id)
            self.duplicates.update(match.info.run_id for match in living[1:])
            self._ids[run] = (living or matches)[0].info.run_id
        return self._ids[run]

    def _search(self, query: str, *, deleted: bool = False, experiments: Sequence[str] = ()) -> list[Run]:
        """All runs that a query matches, of this experiment or of those given, the oldest first."""
        view = self._mlflow.entities.ViewType
        runs: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs(
                list(experiments) or [self._experiment],
                query,
                run_view_type=view.ALL if deleted else view.ACTIVE_ONLY,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _number(self, tags: Mapping[str, str]) -> int | None:
        """The number from 0 of a run about to be made among those of its parent; None where it has none."""
        parent = tags.get("mlflow.parentRunId")
        if parent is None:
            return None
        if parent not in self._nested:
            self._nested[parent] = len(self._search(f"tags.`mlflow.parentRunId` = '{parent}'"))
        self._nested[parent] += 1
        return self._nested[parent] - 1

    def _tags(self, row: Row) -> dict[str, str]:
        """All tags of a run: the row's own, and those by which it is found, nested and known to be alive."""
        tags = {key: _text(value) for key, value in row["tags"].items()}
        tags |= source_tags(row)
        tags[RUN_TAG] = row["run"]
        tags["mlflow.user"] = _user()
        if process := row.get("process"):
            tags |= dict(zip(PROCESS_TAGS, (process["host"], str(process["pid"]), process["start"]), strict=True))
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
