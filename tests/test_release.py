"""What says the version says the same one."""

import re
from pathlib import Path

import qexp

ROOT = Path(__file__).parents[1]


def test_the_version_is_one():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    parts = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert parts[0] == "Unreleased", "what comes next is written down as it is made"
    assert cited == qexp.__version__ == parts[1].split()[0]
