"""The scripts of pages that open offline, and the digest by which a page lets them run and no other."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

_TABLES = "tables.js"  # that index and page share


@dataclass(frozen=True)
class Script:
    """A script of a page.

    Args:
        text: of its `<script>` element.
        digest: of the text, SHA-256 in base64, as a Content-Security-Policy names it.
    """

    text: Markup
    digest: str


def read_script(name: str) -> Script:
    """What tables need, and behind it a page's own script.

    Args:
        name: of a file beside this one.
    """
    text = "".join(Path(__file__).with_name(file).read_text(encoding="utf-8") for file in (_TABLES, name))
    return Script(Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
