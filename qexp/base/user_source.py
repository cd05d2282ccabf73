"""The hash of a researcher's own code: the file of the function and what it imports, so that stored numbers answer for it.

What is imported is read from the source, not from what happens to be loaded, so that the hash is the same in every process. Not
covered: the standard library, what is installed (their versions are recorded), qexp itself, and imports by computed names.
"""

from __future__ import annotations

import ast
import importlib.machinery
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from qexp.base.files import hash_file, hash_json
from qexp.base.user_code import source_of

_INSTALLED = ("site-packages", "dist-packages")


def source_hash(text: str) -> str | None:
    """Hash of the file that holds the function which `text` names and of the files that it imports, directly or not.

    Args:
        text: `package.module:function` or `path/file.py:function`.

    Returns:
        the file's own hash where it imports none of the user's; None where there is no such file.
    """
    path = source_of(text)
    if path is None:
        return None
    files = _imported(path.resolve())
    hashes = {str(name): hash_file(file) for file, name in files.items()}
    return hash_file(path) if len(files) == 1 else hash_json(hashes)


def _imported(first: Path) -> dict[Path, str]:
    """The file and all that it imports -> the name under which it does."""
    files = {first: first.name}
    waiting = [first]
    while waiting:
        path = waiting.pop()
        for module, level in _modules(path):
            for name, file in _find(module, level, path, first.parent):
                if file not in files:
                    files[file] = name
                    waiting.append(file)
    return files


def _modules(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, leading dots) of every import statement; of `from a import b` both a and a.b, as b may be a module."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # importing it will say so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node.level
            yield from ((f"{module}.{alias.name}".lstrip("."), node.level) for alias in node.names)


def _find(module: str, level: int, importer: Path, home: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of a module of the user's and of the packages above it; nothing of an installed one."""
    if level:
        folder = importer.parent
        for _ in range(level - 1):
            folder = folder.parent
        places = [str(folder)]
    else:
        if module.partition(".")[0] in sys.stdlib_module_names or module.partition(".")[0] == "qexp":
            return
        places = [*sys.path, str(home)]
    done = "." * level
    for part in module.split("."):
        found = importlib.machinery.PathFinder.find_spec(part, places) if part else None
        if found is None:
            return
        done = f"{done}{part}"
        if found.origin is not None and found.origin.endswith(".py") and _is_users(Path(found.origin)):
            yield done, Path(found.origin).resolve()
        places = list(found.submodule_search_locations or ())
        done += "."


def _is_users(path: Path) -> bool:
    """True unless the file came with Python or was installed."""
    standard = Path(sysconfig.get_paths()["stdlib"])
    return not any(part in _INSTALLED for part in path.parts) and standard not in path.parents
