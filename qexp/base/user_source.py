"""The hash of a researcher's own code: the file of the function and what it imports, so that stored numbers answer for it.

What is imported is read from the source, not from what happens to be loaded, so that the hash is the same in every process, at
whatever moment it is asked for. A file that imports by a name which it computes stands for all Python files of its folder and of
the packages below it. Not covered: the standard library, what is installed (their versions are recorded), and qexp itself.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from qexp.base.files import hash_file, hash_json
from qexp.base.user_code import source_of

_INSTALLED = ("site-packages", "dist-packages")
_BY_NAME = ("import_module", "__import__")  # calls that import what their first argument names
_COMPUTED = ("spec_from_file_location", "run_path", "run_module", "exec")  # calls that run who knows what
_ANY = "*"  # all modules of a folder


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
    above = () if text.rpartition(":")[0].endswith(".py") else _packages_above(path)
    files = _imported(path.resolve(), above)
    if len(files) == 1:
        return hash_file(path)
    hashes: dict[str, str] = {}
    for file, name in files.items():
        while name in hashes:  # two packages have a module of the same relative name
            name += "'"
        hashes[name] = hash_file(file)
    return hash_json(hashes)


def _packages_above(path: Path) -> Iterator[Path]:
    """The `__init__.py` of the packages that a module lies in, which importing it runs; those that are empty do nothing."""
    for folder in path.resolve().parents:
        file = folder / "__init__.py"
        if not file.is_file():
            return
        if file.stat().st_size:
            yield file


def _imported(first: Path, above: Iterable[Path]) -> dict[Path, str]:
    """The file, the packages above it, and all that these import -> the name under which they do."""
    files = {first: first.name} | {file: f"{file.parent.name}.__init__" for file in above if file != first and _is_users(file)}
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path.suffix != ".py":  # compiled
            continue
        for module, level in _modules(path):
            for name, file in _find(module, level, path, first.parent):
                if file not in files:
                    files[file] = name
                    waiting.append(file)
    return files


def _modules(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, leading dots) of every import; of `from a import b` both a and a.b, as b may be a module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # importing it will say so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node.level
            yield from ((f"{module}.{alias.name}".lstrip("."), node.level) for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _imported_by_call(node)


def _imported_by_call(call: ast.Call) -> Iterator[tuple[str, int]]:
    """What a call imports: what its text names, or any module of the folder where the name is computed."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = call.args[0] if call.args else None
    if function in _BY_NAME and isinstance(named, ast.Constant) and isinstance(named.value, str):
        name = named.value.lstrip(".")
        yield name, len(named.value) - len(name)
    elif function in (*_BY_NAME, *_COMPUTED):
        yield _ANY, 1


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
        if part == _ANY:
            yield from ((f"{done}{name}", file) for place in places for name, file in _modules_below(Path(place)))
            return
        spec = PathFinder.find_spec(part, places) if part else None
        if spec is None and part and not done:
            spec = _installed_elsewhere(part)
        if spec is None:
            return
        done = f"{done}{part}"
        if spec.origin is not None and (file := Path(spec.origin)).is_file() and _is_users(file):
            yield done, file.resolve()
        places = list(spec.submodule_search_locations or ())
        done += "."


def _modules_below(folder: Path, name: str = "") -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of the Python files of a folder and of the packages in it."""
    for path in sorted(folder.iterdir()) if folder.is_dir() and _is_users(folder / "any") else ():
        if path.suffix == ".py":
            yield f"{name}{path.stem}", path.resolve()
        elif (path / "__init__.py").is_file():
            yield from _modules_below(path, f"{name}{path.name}.")


def _installed_elsewhere(name: str) -> ModuleSpec | None:
    """A package whose editable installation keeps it out of `sys.path`."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path if finder is not PathFinder)
    return next((spec for spec in specs if spec is not None), None)


def _is_users(path: Path) -> bool:
    """True unless the file came with Python or was installed."""
    standard = Path(sysconfig.get_paths()["stdlib"])
    return not any(part in _INSTALLED for part in path.parts) and standard not in path.parents
