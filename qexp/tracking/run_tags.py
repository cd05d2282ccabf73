"""Tags that MLflow's UI shows of a run: its columns Source and Version, the description on a run's page, and colours.

The colours that MLflow 3.17 chooses itself may be three blues that look alike in a chart.
"""

from __future__ import annotations

import re

from qexp.tracking.rows import Row

BLACK = "#000000"
# Okabe and Ito's, without black, and without yellow, which is pale on white.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")


def source_tags(row: Row) -> dict[str, str]:
    """Where the run of a `run` row comes from: the verb that was typed, and the commit it ran from, if there is one.

    >>> source_tags({"tags": {"qexp.command": "python -m qexp.train bits=4 -m", "qexp.git": "2680fc6-dirty"}})
    {'mlflow.source.type': 'LOCAL', 'mlflow.source.name': 'qexp.train', 'mlflow.source.git.commit': '2680fc6'}
    """
    command, revision = row["tags"].get("qexp.command", ""), row["tags"].get("qexp.git", "none")
    verb = re.search(r"\bqexp\.\w+", command)
    if verb is None:
        return {}
    # The UI makes a link and a short form of the commit, which a suffix would spoil; `qexp.git` keeps it.
    commit = {} if revision == "none" else {"mlflow.source.git.commit": revision.removesuffix("-dirty")}
    return {"mlflow.source.type": "LOCAL", "mlflow.source.name": verb[0], **commit}


def description(row: Row) -> dict[str, str]:
    """The description of a training's run, in Markdown; nothing for a variant, which its name describes.

    >>> params = {"model.name": "resnet20", "data.name": "digits", "seed": 0}
    >>> row = {"parent": None, "params": params, "tags": {"qexp.command": "x"}}
    >>> print(description(row)["mlflow.note.content"])
    resnet20 on digits, seed 0. The runs below it are quantized copies of it.
    <BLANKLINE>
        x
    """
    params, command = row["params"], row["tags"].get("qexp.command")
    if row["parent"] is not None or command is None or not {"model.name", "data.name"} <= params.keys():
        return {}
    data = row.get("data_label") or params["data.name"]
    what = f"{params['model.name']} on {data}, seed {params.get('seed', 0)}"
    text = f"{what}. The runs below it are quantized copies of it.\n\n    {command}"
    return {"mlflow.note.content": text}


def color(number: int | None) -> dict[str, str]:
    """The colour of a variant by its number in its training, from 0, over again after the sixth; black for the training itself.

    >>> color(None), color(6)
    ({'mlflow.runColor': '#000000'}, {'mlflow.runColor': '#E69F00'})
    """
    return {"mlflow.runColor": BLACK if number is None else COLORS[number % len(COLORS)]}
