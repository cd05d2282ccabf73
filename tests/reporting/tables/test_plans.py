"""Each plan once, with every tensor; nothing where the journal has none."""

import csv
import json

import pandas as pd

from qexp.reporting.tables.plans import plans_of, write_plans


def tensor(name, bits):
    return {
        "name": name,
        "kind": "conv",
        "role": "weight",
        "shape": [4, 3, 3, 3],
        "bits": bits,
        "reason": "",
        "rule": "conv",
        "num_elements": 108,
    }


def test_each_plan_stands_once_with_all_its_tensors(tmp_path):
    plans = {
        "a": [tensor("conv1", 4), tensor("=1+1", None)],
        "b": [tensor("conv1", 8)],
        "c": [tensor("conv1", 4), tensor("=1+1", None)],
    }
    runs = {f"t/{key}": {"artifacts": {"plan.json": json.dumps(rows)}} for key, rows in plans.items()}
    table = pd.DataFrame([{"training": "t", "variant_key": key, "variant": f"W {key}"} for key in ("fp32", "a", "b", "c")])
    (path,) = write_plans(plans_of(runs, table), tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["bits"]) for row in rows] == [("W a", "4"), ("W a", ""), ("W b", "8")]
    assert rows[0]["shape"] == "4x3x3x3" and not rows[1]["name"].startswith("="), "no spreadsheet computes a name"
    assert write_plans(plans_of({}, table), tmp_path) == []
