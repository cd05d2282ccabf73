"""docs/keys.md from the settings themselves: python scripts/write_keys.py."""

from pathlib import Path

from qexp.config.reference import KeyInfo, key_infos
from qexp.sweep.compose import composed_values
from qexp.sweep.help import shown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "keys.md"
HEAD = """# Every key

Written by `scripts/write_keys.py` from the settings' own docstrings, types and marks; `python -m qexp.train --help KEY` prints
an entry. The value is that of `python -m qexp.train` without overrides; `export` and `analyze` are read by those commands.
`null` is None.
"""


def page() -> str:
    """The text of the page."""
    values = composed_values("export") | composed_values("analyze") | composed_values("config")
    groups: dict[str, list[KeyInfo]] = {"": []}
    for name, info in key_infos().items():
        groups.setdefault(name.rpartition(".")[0], []).append(info)
    lines = [HEAD.rstrip()]
    for group, infos in groups.items():
        title = f"`{group}`" if group else "Without a group"
        lines += ["", f"## {title}", "", "| key | value | allowed | meaning |", "| --- | --- | --- | --- |"]
        for info in infos:
            read = f" Read where `{info.read_where}`." if info.read_where else ""
            cells = (f"`{info.name}`", f"`{shown(values.get(info.name))}`", info.allowed, f"{info.meaning}{read}")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
