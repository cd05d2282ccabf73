"""A researcher's own function, named on the command line: `package.module:function` or `path/file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from qexp.base.errors import UserError, nearest
from qexp.base.files import hash_file

_FORM = "package.module:function or file.py:function"


def load_factory(key: str, text: str) -> Callable[..., Any]:
    """Import the function that `text` names.

    A file is imported under a name made of its content, so that the same file gives the same classes throughout a process; its
    folder is appended to `sys.path`, as its neighbours may be imported by it.

    Args:
        key: the configuration key that `text` came from, for the messages (`model.factory`).
        text: `package.module:function` or `path/file.py:function`; a relative path starts at the working directory.

    Raises:
        UserError: malformed text, no such module, file or function, an import that fails, or something that cannot be called.

    >>> load_factory("model.factory", "collections:OrderedDict").__name__
    'OrderedDict'
    """
    place, colon, name = text.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise UserError(key, text, allowed=_FORM)
    module = _import_file(key, text, Path(place).expanduser()) if place.endswith(".py") else _import_module(key, text, place)
    if not hasattr(module, name):
        known = sorted(item for item, value in vars(module).items() if callable(value) and not item.startswith("_"))
        listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        remedy = nearest(name, known) or (f"It has: {listed}." if known else "It defines no function.")
        raise UserError(key, text, allowed=f"a function in {place}", remedy=remedy)
    factory = getattr(module, name)
    if not callable(factory):
        raise UserError(key, text, allowed="a function", remedy=f"{name} is of type {type(factory).__name__}.")
    return factory


def source_hash(text: str) -> str | None:
    """Hash of the file that holds the function which `text` names, None where there is no such file.

    What that file imports is not covered.
    """
    place = text.rpartition(":")[0]
    if place.endswith(".py"):
        path: str | None = str(Path(place).expanduser())
    else:
        try:
            spec = importlib.util.find_spec(place)
        except (ImportError, ValueError):
            return None
        path = spec.origin if spec is not None else None
    return hash_file(Path(path)) if path is not None and Path(path).is_file() else None


def call_factory(key: str, text: str, *, offered: dict[str, Any]) -> Any:
    """Call the function that `text` names with those of the `offered` keyword arguments that it takes.

    Raises:
        UserError: as `load_factory`, and where it requires an argument that is not offered, or raises.
    """
    factory = load_factory(key, text)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some builtins have no signature
        parameters = ()
    takes_all = any(item.kind is item.VAR_KEYWORD for item in parameters)
    named = [item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    unmet = [item.name for item in parameters if item.kind is item.POSITIONAL_ONLY and item.default is item.empty]
    unmet += [item.name for item in named if item.default is item.empty and item.name not in offered]
    if unmet:
        allowed = f"a function that needs nothing but {', '.join(offered)}"
        raise UserError(key, text, allowed=allowed, remedy=f"Give {', '.join(unmet)} a default.")
    taken = offered if takes_all else {item.name: offered[item.name] for item in named if item.name in offered}
    try:
        return factory(**taken)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            key, text, allowed="a function that can be called", remedy=f"Calling it raised {_where(error)}."
        ) from error


def _import_module(key: str, text: str, place: str) -> ModuleType:
    """Import a module by its dotted name."""
    try:
        return importlib.import_module(place)
    except Exception as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if isinstance(missing, str) and (place == missing or place.startswith(missing + ".")):
            remedy = f"There is no module {missing} on the Python path; for a file write path/file.py:function."
            raise UserError(key, text, allowed="a module that can be imported", remedy=remedy) from None
        raise _failed_import(key, text, error) from error


def _import_file(key: str, text: str, path: Path) -> ModuleType:
    """Import a file, once per content."""
    if not path.is_file():
        near = nearest(path.name, [item.name for item in path.parent.glob("*.py")] if path.parent.is_dir() else [])
        raise UserError(key, text, allowed="a file that exists", remedy=near or f"There is no file {path.absolute()}.")
    path = path.resolve()
    name = f"qexp_factory_{path.stem.replace('.', '_')}_{hash_file(path, 12)}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module  # dataclasses and pickle look their classes' module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed_import(key, text, error) from error
    return module


def _failed_import(key: str, text: str, error: Exception) -> UserError:
    """The error for code that raises while it is imported."""
    return UserError(key, text, allowed="a module that can be imported", remedy=f"Importing it raised {_where(error)}.")


def _where(error: Exception) -> str:
    """Type, message and line of an exception in the user's code."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
    return f"{type(error).__name__}: {error} ({place})"
