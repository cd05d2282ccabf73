"""What says the version says the same one, and the log is in the order that it tells of itself."""

import re
from datetime import date
from pathlib import Path

import qexp

ROOT = Path(__file__).parents[1]


def test_the_version_is_one():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    parts = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert parts[0] == "Unreleased", "what comes next is written down as it is made"
    assert cited == qexp.__version__ == parts[1].split()[0]


def test_the_log_has_the_newest_first():
    dates = re.findall(r"^## (\S+?):", (ROOT / "results" / "LOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(dates) > 40 and all(map(date.fromisoformat, dates)) and dates == sorted(dates, reverse=True)
