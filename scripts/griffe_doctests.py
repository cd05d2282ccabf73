"""Examples of docstrings as code on the site: griffe, which reads docstrings for mkdocstrings, takes `>>>` for a quotation.

Named in mkdocs.yml, and loaded by griffe.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)  # up to a blank line or the end, as doctest reads it


class Doctests(griffe.Extension):
    """Fence the examples of each docstring that have no indentation."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called with each object once all are loaded."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(lambda example: f"```python\n{example[0]}\n```", obj.docstring.value)
