"""How the codes of each activation point differ from the simulation's, stage beside stage, and the steps that they differ by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qexp.base.table import Column, Table
from qexp.tracking.row_types import PointRow

STEPS = ("below", "minus_2", "minus_1", "equal", "plus_1", "plus_2", "above")  # columns of points.csv
_TITLES = ("-3 and less", "-2", "-1", "0", "+1", "+2", "+3 and more")
POINTS_EXPLAINED = (
    "Of each activation point, in order of execution, the share of codes in percent that are not the simulation's, end to end, "
    "and in brackets alone: not those that integers make of the stage's own codes before the point. `points.csv` has the steps "
    "that they differ by."
)


def share_text(percent: float) -> str:
    """A share of codes, so that none is told from few.

    >>> share_text(0.0), share_text(0.0004), share_text(12.3456)
    ('0', '<0.001', '12.346')
    """
    if not percent:
        return "0"
    return "<0.001" if percent < 0.001 else f"{percent:.3f}"


def side_by_side(points: Sequence[PointRow]) -> Table:
    """A row for each activation point, a column for each stage: `0.012 (<0.001)`, end to end and alone.

    Args:
        points: of one export.
    """
    stages, names = (list(dict.fromkeys(row[key] for row in points)) for key in ("stage", "point"))
    of_stage: dict[str, dict[str, PointRow]] = {stage: {} for stage in stages}
    for row in points:
        of_stage[row["stage"]][row["point"]] = row

    def column(stage: str) -> tuple[Column, list[str | None]]:
        rows = [of_stage[stage].get(name) for name in names]
        return Column(name=stage, title=stage, kind="text", align="right"), [_both(row) for row in rows]

    if not points:
        return Table((), ())
    return Table.of_values([(Column(name="point", title="codes that differ %", kind="text"), names), *map(column, stages)])


def _both(row: PointRow | None) -> str | None:
    return None if row is None else f"{share_text(row['differ_pct'])} ({share_text(row['alone_differ_pct'])})"


def histogram(points: Sequence[PointRow]) -> Table:
    """A row for each stage and activation point: how many of the codes differ by how many steps, percent, end to end.

    Args:
        points: of one export.
    """
    title = "steps from the simulation, %"
    columns = [Column(name="stage", title="stage", kind="text"), Column(name="point", title=title, kind="text")]
    columns += [
        Column(name=name, title=title, kind="text", align="right", value=_share(number))
        for number, (name, title) in enumerate(zip(STEPS, _TITLES, strict=True))
    ]
    columns.append(Column(name="max_steps", title="largest", kind="count"))
    return Table.of(columns, points) if points else Table((), ())


def _share(number: int) -> Callable[[PointRow], str]:
    return lambda row: share_text(100 * row["steps"][number] / max(1, row["num_codes"]))


def flat(row: PointRow) -> Mapping[str, object]:
    """A row of `points.csv`: both histograms in columns of their own."""
    values: dict[str, object] = {key: value for key, value in row.items() if key not in ("steps", "alone_steps")}
    for counts, name in ((row["steps"], ""), (row["alone_steps"], "alone_")):
        values |= {f"{name}{step}": count for step, count in zip(STEPS, counts, strict=True)}
    return values
