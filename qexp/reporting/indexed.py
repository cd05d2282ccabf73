"""What the index says of each experiment, read from the files of its folder: `table.csv`, and what `report.html` leads with.

Rejected: computing the headline anew from `table.csv`. On all 13 published pages it gave the sentences that they lead with, but
took 20 to 230 ms an experiment, and an index of 50 is to be written behind every report. Read from the page it is shown as it
stands there, and no number is made of it. pandas is left out for the same reason.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote_from_bytes

from qexp.base.text import MIB
from qexp.tracking.record import FLOAT_VARIANT

TABLE, PAGE = "table.csv", "report.html"
PAGES = (PAGE, "table.md", TABLE)  # what a line leads to: the first that is there
MARKS = (TABLE, PAGE, "jobs.csv")  # a folder with one of these is an experiment
NEEDED = ("training", "variant", "prec1", "n")  # columns of a table of evaluations; those of studies have others
LARGEST_BYTES = 32 * MIB  # of a table that is read
PART, LEAD_PARTS = 4096, 16  # characters of a page that are read at once, and how often until its first title is met


@dataclass(frozen=True)
class Row:
    """One row of a table; numbers that it does not have are None.

    Args:
        variant: as it is read, with the training where the table has several.
        kind: `float`, `control` or `copy`, as in the page of the experiment.
        network: its name.
        data: name of the data set, the start of its content's hash, the split unless that is `test`.
        n: images that were scored.
        bits: width of the weights, in words.
        size_mib: stored.
        prec1: percent.
        delta: points of Prec@1 against what it is tested against: the float network, or the float control of a network that was
            trained with quantization, where there is one.
        low: of its 95 % interval.
        high: of its 95 % interval.
        alarms: as in the table, one text.
    """

    variant: str
    kind: str
    network: str
    data: str
    n: int | None
    bits: str
    size_mib: float | None
    prec1: float | None
    delta: float | None
    low: float | None
    high: float | None
    alarms: str


@dataclass(frozen=True)
class Listed:
    """One experiment.

    Args:
        name: its folder, as text.
        address: of its page, relative to the index, as a URL.
        facts: what its page leads with: a number, what it is, more of it.
        rows: of its table.
        date: of its last evaluation, UTC.
        remark: why there is no headline or no row; empty where there is nothing to say.
    """

    name: str
    address: str
    facts: tuple[tuple[str, str, str], ...]
    rows: tuple[Row, ...]
    date: str
    remark: str

    @property
    def deltas(self) -> list[float]:
        """Of the quantized copies."""
        return [row.delta for row in self.rows if row.kind == "copy" and row.delta is not None]

    @property
    def alarms(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(row.alarms for row in self.rows if row.alarms))

    def several(self, field: str) -> list[str]:
        """The different values of a field of its rows: `n`, `data`, `network`."""
        return list(dict.fromkeys(str(getattr(row, field)) for row in self.rows if getattr(row, field) not in (None, "")))


def folders(results_dir: Path) -> list[Path]:
    """The folders of experiments, by name; none where there is no such folder.

    Args:
        results_dir: parent of them. Folders below them (`published/NAME`) are an index of their own.
    """
    if not results_dir.is_dir():
        return []
    return sorted(folder for folder in results_dir.iterdir() if any(os.path.isfile(folder / file) for file in MARKS))


def read_experiment(folder: Path) -> Listed:
    """What the files of a folder say; whatever is wrong with them is a remark, since the other experiments have a page too."""
    file = next((file for file in PAGES if os.path.isfile(folder / file)), "")
    address = f"./{quote_from_bytes(str(folder.name).encode(errors='surrogateescape'))}/{file}"
    name = folder.name.encode(errors="backslashreplace").decode()
    facts: tuple[tuple[str, str, str], ...] = ()
    records: list[dict[str, str]] = []
    remark = ""
    try:
        records = _records(folder / TABLE)
        facts = _facts(folder / PAGE) if os.path.isfile(folder / PAGE) else ()
    except (OSError, ValueError, csv.Error) as error:
        remark = f"{TABLE} cannot be read: {error}"
    if not remark and records and not set(NEEDED) <= records[0].keys():
        remark, records = f"a table of its own kind, with {len(records)} rows", []
    elif not remark and not records:
        remark = "nothing is evaluated yet"
    elif not remark and not facts:
        remark = "its rows follow several protocols" if "protocol" in records[0] else "no headline: it has no page"
    rows = tuple(_rows(records))
    times = [time for record in records if (time := _number(record.get("time_ms"))) is not None]
    return Listed(name, address, facts, rows, _date(times), remark)


def _records(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none where there is none.

    Raises:
        OSError, ValueError, csv.Error: it cannot be read, is too large, or is no such file.
    """
    if not path.is_file():
        return []
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES // MIB} MiB")
    with open(path, encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle, restkey="", restval="")
        return [{key: value for key, value in record.items() if key} for record in reader]


def _rows(records: list[dict[str, str]]) -> Iterator[Row]:
    """The rows as the index shows them."""
    several = len({record["training"] for record in records}) > 1
    for record in records:
        get: Mapping[str, str] = {key: value.strip() for key, value in record.items()}
        variant, split, hashed = get["variant"], get.get("split", "test"), get.get("data_hash", "")[:6]
        size, count = _number(get.get("size_bytes")), _number(get["n"])
        words = (get.get("data", ""), hashed, "" if split == "test" else split)
        control = get.get("mode") == "float" and variant != FLOAT_VARIANT
        yield Row(
            variant=" ".join(word for word in (get.get("label", "") if several else "", variant) if word),
            kind="float" if variant == FLOAT_VARIANT else "control" if control else "copy",
            network=get.get("model", ""),
            data=" ".join(word for word in words if word),
            n=None if count is None else int(count),
            bits=get.get("widths", "") or _width(get.get("bits", "")),
            size_mib=None if size is None else size / MIB,
            prec1=_number(get["prec1"]),
            delta=_delta(get),
            low=_number(get.get("ci_low")),
            high=_number(get.get("ci_high")),
            alarms=get.get("alarms", ""),
        )


def _delta(get: Mapping[str, str]) -> float | None:
    """The difference that the interval of its row is of; a float network has none but across preprocessings."""
    if get["variant"] == FLOAT_VARIANT and not get.get("ci_low"):
        return None
    against_control = _number(get.get("vs_control"))
    return _number(get.get("delta_prec1")) if against_control is None else against_control


def _width(text: str) -> str:
    """`8` of `8.0`; what is no number stays."""
    number = _number(text)
    return text if number is None else f"{number:g}"


def _number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date(times_ms: list[float]) -> str:
    """The day of the last of some times, of none or of a time that no calendar has the empty text."""
    try:
        return f"{datetime.fromtimestamp(max(times_ms) / 1000, UTC):%Y-%m-%d}" if times_ms else ""
    except (OverflowError, ValueError, OSError):
        return ""


def _facts(path: Path) -> tuple[tuple[str, str, str], ...]:
    """What a page leads with."""
    lead = _Lead()
    with open(path, encoding="utf-8", errors="replace") as handle:
        for _ in range(LEAD_PARTS):
            lead.feed(handle.read(PART))
            if lead.ended:
                break
    return tuple((fact[0], fact[1], " ".join(fact[2:])) for fact in lead.facts if len(fact) > 1)


class _Lead(HTMLParser):
    """The texts of the elements in each `<div class="fact">` above the first `<h2>`."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: list[list[str]] = []
        self.ended = False  # the first title below the headline is met
        self._within = False  # a fact
        self._open = False  # an element of it

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a fact, or a text of it."""
        self.ended = self.ended or tag == "h2"
        if tag == "div" and not self.ended:
            self._within = ("class", "fact") in attrs
            if self._within:
                self.facts.append([])
        elif self._within:
            self._open = True
            self.facts[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """End a fact, or a text of it."""
        self._open = False
        self._within = self._within and tag != "div"

    def handle_data(self, data: str) -> None:
        """A part of a text."""
        if self._open and self._within:
            self.facts[-1][-1] += data
