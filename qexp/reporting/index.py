"""`results/index.html`: every experiment with its headline, and the rows of all tables; one file that opens offline.

It is written behind every report, from the files that stand in `results/` then, so that folders that were copied there are listed
and those that were removed are not. Its script sorts and filters; a policy in the page lets no other script run, whatever a name
holds.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup, escape

from qexp.base.files import write_text_atomic
from qexp.base.table import Column
from qexp.base.text import counted
from qexp.reporting.indexed import PAGE, TABLE, Listed, Row, folders, read_experiment
from qexp.reporting.script import read_script
from qexp.reporting.tables.statistic_cells import interval_text

FILE = "index.html"
TEMPLATE = Path(__file__).with_name("index.html.jinja")
LARGEST_BYTES = 300_000  # of the page, as long as the experiments alone leave room for rows
LEAST_BYTES = 20_000  # for rows where they do not
LONGEST = 220  # characters of a text
ALARMS = 3  # of an experiment that are quoted
TURNS = 10


def _interval(row: Row) -> str | None:
    return None if row.low is None or row.high is None else interval_text(row.low, row.high)


COLUMNS = (
    Column(name="variant", title="variant", kind="text"),
    Column(name="network", title="network", kind="text"),
    Column(name="data", title="data", kind="text"),
    Column(name="n", title="n", kind="count"),
    Column(name="bits", title="bits", kind="number", form=str),
    Column(name="size_mib", title="MiB", kind="number", form=".3f"),
    Column(name="prec1", title="Prec@1", kind="percent"),
    Column(name="delta", title="delta", kind="points"),
    Column(name="interval", title="95 %", kind="number", form=str, value=_interval),
)


def write_index(results_dir: Path) -> Path:
    """Write the page.

    Two reports may end at once. What was written or removed while this page was made is looked for behind the writing, and the
    page made again, so that the last one written lists all.

    Args:
        results_dir: parent of the folders of experiments.

    Raises:
        SaveError: it cannot be written; an earlier one is intact.
    """
    path = results_dir / FILE
    for _ in range(TURNS):
        before = _stamps(results_dir)
        write_text_atomic(path, page_text([read_experiment(folder) for folder in folders(results_dir)]))
        if _stamps(results_dir) == before:
            break
    return path


def _stamps(results_dir: Path) -> dict[str, tuple[int, int]]:
    """Time and size of every file that is read."""
    stamps = {}
    for folder in folders(results_dir):
        for path in (folder / TABLE, folder / PAGE):
            if os.path.isfile(path):
                status = path.stat()
                stamps[str(path)] = (status.st_mtime_ns, status.st_size)
    return stamps


def page_text(experiments: Sequence[Listed]) -> str:
    """The page, of at most `LARGEST_BYTES` where the experiments leave room: each gives as many rows as all can, the first ones.

    Args:
        experiments: in the order in which they are listed.
    """
    rows = [[_row(experiment, row) for row in experiment.rows] for experiment in experiments]
    room = max(LARGEST_BYTES - len(_render(experiments, [], 0).encode()), LEAST_BYTES)
    most = max(map(len, rows), default=0)
    while most and sum(len(text.encode()) + 1 for part in rows for text in part[:most]) > room:
        most = most * 9 // 10
    return _render(experiments, [text for part in rows for text in part[:most]], sum(map(len, rows)))


def _render(experiments: Sequence[Listed], rows: Sequence[Markup], total: int) -> str:
    """The page with these rows of a total."""
    script = read_script("index.js")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        experiments=[_shown(experiment) for experiment in experiments],
        num_experiments=counted(len(experiments), "experiment"),
        columns=COLUMNS,
        rows=Markup("\n").join(rows),
        num_rows=len(rows),
        total=total,
        script=script.text,
        script_digest=script.digest,
    )


def _shown(experiment: Listed) -> dict[str, object]:
    """What the template shows of an experiment."""
    alarms, deltas = experiment.alarms, experiment.deltas
    more = [f"and {len(alarms) - ALARMS} more"] if len(alarms) > ALARMS else []
    values = {field: experiment.several(field) for field in ("network", "data", "n")}
    return {
        "name": escape(_short(experiment.name)).replace("_", Markup("_<wbr>")),
        "address": experiment.address,
        "facts": [tuple(_short(text) for text in fact) for fact in experiment.facts],
        "remark": _short(experiment.remark),
        "date": experiment.date,
        **{field: _first(texts) for field, texts in values.items()},
        "several": [_short(f"{field}: {', '.join(texts)}") for field, texts in values.items() if len(texts) > 1],
        "rows": len(experiment.rows) or "",
        "best": f"{max(deltas):+.2f}" if deltas else "",
        "worst": f"{min(deltas):+.2f}" if deltas else "",
        "num_alarms": len(alarms) or "",
        "alarms": [*map(_short, alarms[:ALARMS]), *more],
    }


def _first(texts: Sequence[str]) -> str:
    """What a line says of several: the first, and how many more there are."""
    rest = f", +{len(texts) - 1}" if len(texts) > 1 else ""
    return _short(texts[0]) + rest if texts else ""


def _row(experiment: Listed, row: Row) -> Markup:
    """A row of the large table. End tags are left out, as HTML lets them be: there may be a thousand rows."""
    texts = [escape(_short(column.text(column.of(row)))) for column in COLUMNS]
    alarm = Markup(' <b title="{}">alarm</b>').format(_short(row.alarms)) if row.alarms else ""
    start = f'<tr class="{row.kind}"><td><a href="{escape(experiment.address)}">{escape(_short(experiment.name))}</a>'
    return Markup("".join([start, f'<th scope="row">{texts[0]}{alarm}', *(f"<td>{text}" for text in texts[1:])]))


def _short(text: str) -> str:
    """A text of a length that a table bears."""
    return text if len(text) <= LONGEST else textwrap.shorten(text[: LONGEST + 1], LONGEST, placeholder=" ...") or text[:LONGEST]
