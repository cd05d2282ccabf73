"""Lay the pages of the documents' site out in a folder: python scripts/write_site.py FOLDER. `make docs` builds the site of them.

README.md is its first page, docs/ its pages, each folder of results/published/ a page of the gallery with its figures, and each
package with public modules a page of reference. Links that hold on GitHub are turned into links of the site.

Rejected: hooks of MkDocs, which its successors do not run; any generator reads a folder of Markdown.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import qexp

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results" / "published"
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PAGES |= {"results/README.md": "results.md", "results/LOG.md": "log.md", "results/bench": "results.md"}
PAGES |= {"results/published": "gallery/index.md", "LICENSE": "LICENSE.txt"}
SHOWN = (".csv", ".html", ".png")  # files of a published folder that the site has
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(?=\))")
API_SECTION = re.compile(r"## Public API of the packages\n(.*?)\n## ", re.DOTALL)


def site_path(path: str) -> str | None:
    """Where a file or folder of the repository stands on the site; None where it does not."""
    parts = path.split("/")
    if path in PAGES:
        return PAGES[path]
    if parts[:2] == ["results", "published"] and len(parts) > 2:
        name, rest = parts[2], "/".join(parts[3:])
        return f"gallery/{name}.md" if rest in ("", "README.md") else f"gallery/{name}/{rest}"
    if parts[0] == "examples":
        return path.replace(".ipynb", ".md")
    return path.removeprefix("docs/") if parts[0] == "docs" else None


def with_site_links(text: str, source: str) -> str:
    """A page's text with the links of the site, and blank lines where Markdown of sites wants them.

    Args:
        text: Markdown, as GitHub shows it.
        source: the page's path in the repository.

    Raises:
        ValueError: a link leads to a file that the site has not.
    """
    page = site_path(source)
    assert page is not None

    def moved(link: re.Match[str]) -> str:
        if "://" in link[2] or link[2].startswith("mailto:"):
            return link[0]
        target = os.path.normpath(os.path.join(os.path.dirname(source), link[2]))
        place = site_path(target)
        if place is None:
            raise ValueError(
                f"{source}: the site has no {target}; give it a place in {Path(__file__).name} or take the link away"
            )
        return f"{link[1]}{os.path.relpath(place, os.path.dirname(page) or '.')}{link[3] or ''}"

    return with_blank_lines(LINK.sub(moved, text))


def with_blank_lines(text: str) -> str:
    """Lists and tables with a blank line before them, without which only GitHub sees them.

    >>> with_blank_lines("so:\\n- a\\n- b")
    'so:\\n\\n- a\\n- b'
    """
    lines: list[str] = []
    fenced = False
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        starts = (marker for marker in ("- ", "* ", "| ") if line.startswith(marker))
        marker = next(starts, "")
        if not fenced and marker and before.strip() and not before.startswith((marker, " ")):
            lines.append("")
        fenced ^= line.lstrip().startswith("```")
        lines.append(line)
    return "\n".join(lines)


def write_gallery(folder: Path) -> None:
    """A page for each published folder, with its figures and files, and one that lists them with their first figures."""
    intro = "What was measured here, each with the command that gives it again. [How they are kept](../results.md)."
    listed = ["# Published results", intro]
    for readme in sorted(PUBLISHED.glob("*/README.md")):
        name, source = readme.parent.name, readme.relative_to(ROOT).as_posix()
        text = with_site_links(readme.read_text(encoding="utf-8"), source)
        files = [path for path in sorted(readme.parent.rglob("*")) if path.suffix in SHOWN and path != readme]
        for path in files:
            place = folder / "gallery" / name / path.relative_to(readme.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        figures = [path.relative_to(readme.parent.parent).as_posix() for path in files if path.suffix == ".png"]
        parts = [text.rstrip(), *(["## Figures"] if figures else [])]
        parts += [f"![{Path(figure).stem.replace('_', ' ')}]({figure})" for figure in figures]
        tables = [path.relative_to(readme.parent.parent).as_posix() for path in files if path.suffix in (".csv", ".html")]
        parts += ["## Files", "\n".join(f"- [{table.partition('/')[2]}]({table})" for table in tables)] if tables else []
        (folder / "gallery" / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        listed.append(f"## [{text.splitlines()[0].removeprefix('# ')}]({name}.md)")
        listed += [f"![{name}]({figures[0]}){{ width=480 loading=lazy }}"] if figures else []
    (folder / "gallery" / "index.md").write_text("\n\n".join(listed) + "\n", encoding="utf-8")


def write_notebooks(folder: Path) -> None:
    """A page for each notebook of examples/: its texts and its code."""
    (folder / "examples").mkdir()
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        parts = [
            ("```python\n{}\n```" if cell["cell_type"] == "code" else "{}").format("".join(cell["source"])) for cell in cells
        ]
        source = path.relative_to(ROOT).as_posix()
        text = with_site_links("\n\n".join([*parts, f"The notebook is `{source}`."]) + "\n", source)
        (folder / "examples" / f"{path.stem}.md").write_text(text, encoding="utf-8")


def public_modules(architecture: str) -> dict[str, list[str]]:
    """Package -> its modules that a page names in its section on the public API.

    Args:
        architecture: the text of docs/architecture.md.
    """
    section = API_SECTION.search(architecture)
    assert section, "docs/architecture.md has no section on the public API of the packages"
    packages: dict[str, list[str]] = {}
    for name in sorted(set(re.findall(r"\bqexp(?:\.\w+)+", section[1]))):
        parts = name.split(".")
        for end in range(len(parts), 2, -1):
            if (ROOT / Path(*parts[:end])).with_suffix(".py").is_file():
                modules = packages.setdefault(parts[1], [])
                modules += [] if ".".join(parts[:end]) in modules else [".".join(parts[:end])]
                break
    return packages


def write_reference(folder: Path) -> None:
    """A page of the names that `import qexp` offers, and one for each package that has public modules."""
    packages = public_modules((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    (folder / "api").mkdir()
    names = [f"::: {qexp._MODULES[name]}.{name}" for name in qexp.__all__]
    others = ", ".join(f"[{package}]({package}.md)" for package in packages)
    intro = f"Each of these is offered by `import qexp`. The packages have pages of their own: {others}."
    (folder / "api" / "index.md").write_text("\n\n".join(["# The public API", intro, *names]) + "\n", encoding="utf-8")
    for package, modules in packages.items():
        heading = f"# qexp.{package}\n\nThe modules that [architecture](../architecture.md#public-api-of-the-packages) names."
        text = "\n\n".join([heading, *(f"::: {module}" for module in modules)])
        (folder / "api" / f"{package}.md").write_text(text + "\n", encoding="utf-8")


def main(folder: Path) -> None:
    """Write all pages into `folder`, which is made anew.

    Args:
        folder: of this script alone.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "gallery").mkdir(parents=True)
    own = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "results/LOG.md"]
    for source in [*own, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]:
        page = site_path(source)
        assert page is not None
        text = with_site_links((ROOT / source).read_text(encoding="utf-8"), source)
        (folder / page).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "images", folder / "images")
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE.txt")
    write_notebooks(folder)
    write_gallery(folder)
    write_reference(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
