"""docs/science.md from the docstrings that name a source: python scripts/write_science.py."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "science.md"
HEAD = """# The science

Every formula of the code that has a source, as the code has it, with that source. Written by `scripts/write_science.py` from
the docstrings of the functions and classes named; [quantizers.md](quantizers.md) has all grids in one table,
[tables.md](tables.md) what a report computes of them. Throughout b is a number of bits, s a scale, z a zero point, R the
rounding, n and p the smallest and the largest code (in statistics n is a number of images, p a probability), x^ what
quantizing makes of x. "Document 00n" is one of [the documents that qexp grew from](documents.md).
"""
SECTIONS = {
    "Grids, formats and rounding": ("qexp.quant", "qexp.nn.input_quant"),
    "Training with quantization": (
        "qexp.quant.gradients",
        "qexp.quant.gradients_pact",
        "qexp.quant.gradients_dorefa",
        "qexp.qat",
    ),
    "Ranges": ("qexp.ptq.range_methods", "qexp.ptq.mse", "qexp.ptq.kl", "qexp.ptq.aciq"),
    "Corrections": ("qexp.nn.fold", "qexp.ptq"),
    "Bits per layer": ("qexp.analysis",),
    "Integers and cost": ("qexp.deploy",),
    "Statistics": ("qexp.stats",),
    "Networks, data and training": ("qexp.models", "qexp.data", "qexp.engine"),
}
APART = "qexp.studies"  # recomputes the documents, whose page says what they hold
# A paragraph keeps its lines where the first is a formula and no sentence, or where names stand in columns.
FORMULA = re.compile(r"(?!(?:[A-Z][\w+-]*|so|in) [a-z]|With ).*(?:(?<![<>=!'])=(?!=)|\+-|<=)|\w+: {2,}|\w+: .*\n\w+: {2,}")
SOURCE = re.compile(r"\bSource: (.+?)(?=\n\n|\n>>>|$)", re.DOTALL)


@dataclass(frozen=True)
class Sourced:
    """What has a source.

    Args:
        name: dotted.
        summary: the docstring's first sentence or line.
        paragraphs: between that and its arguments.
        source: as the docstring names it.
    """

    name: str
    summary: str
    paragraphs: tuple[str, ...]
    source: str


def sourced() -> Iterator[Sourced]:
    """All that names a source, by file and line."""
    for path in sorted((ROOT / "qexp").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not module.startswith(APART):
            yield from _within(ast.parse(path.read_text(encoding="utf-8")), module)


def _within(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[Sourced]:
    """What names a source of a node and of what it holds."""
    text = ast.get_docstring(node) or ""
    source = SOURCE.search(text)
    if source and source[1] != "as the module's.":
        told = re.split(r"\n(?:Args|Attributes|Raises|Returns):\n|(?:\n\n| )Source: |\nSource: |\n>>> ", text)[0]
        summary, *paragraphs = told.strip().split("\n\n")
        yield Sourced(name, " ".join(summary.split()), tuple(paragraphs), " ".join(source[1].split()))
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from _within(child, f"{name}.{child.name}")


def section_of(name: str) -> str:
    """The section of a dotted name: that with the longest beginning of it.

    Raises:
        ValueError: no section has it.
    """
    beginnings = {start: title for title, starts in SECTIONS.items() for start in starts if f"{name}.".startswith(f"{start}.")}
    if not beginnings:
        raise ValueError(f"{name} has a source and belongs to no section of {Path(__file__).name}")
    return beginnings[max(beginnings, key=len)]


def page() -> str:
    """The text of the page."""
    sections: dict[str, list[Sourced]] = {title: [] for title in SECTIONS}
    for entry in sourced():
        sections[section_of(entry.name)].append(entry)
    parts = [HEAD.rstrip()]
    for title, entries in sections.items():
        parts.append(f"## {title}")
        for entry in entries:
            parts += [f"### `{entry.name.removeprefix('qexp.')}`", _prose(entry.summary)]
            parts += [f"```text\n{text}\n```" if FORMULA.match(text) else _prose(text) for text in entry.paragraphs]
            parts.append(f"Source: {_prose(entry.source)}")
    return "\n\n".join(parts) + "\n"


def _prose(text: str) -> str:
    """Text of a docstring without what Markdown would read as its own: in code nothing is changed."""
    quoted = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([<\[\]])", r"\\\1", part) for part in quoted)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
