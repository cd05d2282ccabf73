"""A researcher's own function, named on the command line: `package.module:function` or `path/file.py:function`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from qexp.base.errors import UserError, nearest
from qexp.base.files import hash_file

_FORM = "package.module:function or file.py:function"
# What the user's code may raise; a real Ctrl-C raises `Preempted` while a command runs.
_RAISED = (Exception, SystemExit, KeyboardInterrupt)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)  # what an argument can be given to by name


def load_factory(key: str, text: str) -> Callable[..., object]:
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
    source, colon, name = text.rpartition(":")
    if not (colon and source and name.isidentifier()):
        raise UserError(key, text, allowed=_FORM)
    module = _import_file(key, text, Path(source).expanduser()) if source.endswith(".py") else _import_module(key, text, source)
    if not hasattr(module, name):
        known = sorted(public for public, value in vars(module).items() if callable(value) and not public.startswith("_"))
        listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        remedy = nearest(name, known) or (f"It has: {listed}." if known else "It defines no function.")
        raise UserError(key, text, allowed=f"a function in {source}", remedy=remedy)
    factory: object = getattr(module, name)
    if not callable(factory):
        raise UserError(key, text, allowed="a function", remedy=f"{name} is of type {type(factory).__name__}.")
    return factory


def source_of(text: str) -> Path | None:
    """The file that holds the function which `text` names, None where there is no such file."""
    source = text.rpartition(":")[0]
    if source.endswith(".py"):
        path = Path(source).expanduser()
    else:
        try:
            spec = importlib.util.find_spec(source)
        except (ImportError, ValueError):
            return None
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin)
    return path if os.path.isfile(path) else None


def state_of(text: str) -> tuple[object, ...]:
    """What changes when the file that `text` names does, without reading it: its place, size and time."""
    path = source_of(text) if text.rpartition(":")[0].endswith(".py") else None
    if path is None:
        return (text,)
    now = path.stat()
    return (str(path.absolute()), text.rpartition(":")[2], now.st_size, now.st_mtime_ns)


def call_factory(key: str, text: str, *, offered: Mapping[str, object]) -> object:
    """Call the function that `text` names with those of the `offered` keyword arguments that it takes.

    Raises:
        UserError: as `load_factory`, and where it requires an argument that is not offered, or raises.
    """
    factory = load_factory(key, text)
    try:
        parameters = tuple(inspect.signature(factory).parameters.values())
    except ValueError:  # some builtins have no signature
        parameters = ()
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    named = [parameter for parameter in parameters if parameter.kind in _NAMED]
    required = [parameter for parameter in parameters if parameter.default is inspect.Parameter.empty]
    unmet = [parameter.name for parameter in required if parameter.kind is inspect.Parameter.POSITIONAL_ONLY]
    unmet += [parameter.name for parameter in required if parameter.kind in _NAMED and parameter.name not in offered]
    if unmet:
        allowed = (
            f"a function that needs nothing but {names}" if (names := ", ".join(offered)) else "a function without arguments"
        )
        raise UserError(key, text, allowed=allowed, remedy=f"Give {', '.join(unmet)} a default.")
    taken = offered if takes_all else {name: offered[name] for name in (parameter.name for parameter in named) if name in offered}
    try:
        return factory(**taken)
    except UserError:
        raise
    except _RAISED as error:
        raise UserError(
            key, text, allowed="a function that can be called", remedy=f"Calling it raised {_where(error)}."
        ) from error


def _import_module(key: str, text: str, name: str) -> ModuleType:
    """Import a module by its dotted name."""
    try:
        return importlib.import_module(name)
    except _RAISED as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if isinstance(missing, str) and (name == missing or name.startswith(missing + ".")):
            remedy = f"There is no module {missing} on the Python path; for a file write path/file.py:function."
            raise UserError(key, text, allowed="a module that can be imported", remedy=remedy) from None
        raise _failed_import(key, text, error) from error


def _import_file(key: str, text: str, path: Path) -> ModuleType:
    """Import a file, once per content."""
    if not os.path.isfile(path):
        near = nearest(path.name, [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else [])
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
    except _RAISED as error:
        del sys.modules[name]
        raise _failed_import(key, text, error) from error
    return module


def _failed_import(key: str, text: str, error: BaseException) -> UserError:
    """The error for code that raises while it is imported."""
    return UserError(key, text, allowed="a module that can be imported", remedy=f"Importing it raised {_where(error)}.")


def _where(error: BaseException) -> str:
    """Type, message and line of an exception in the user's code."""
    if isinstance(error, SyntaxError):
        line = f"{error.filename}:{error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{frame.filename}:{frame.lineno}"
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first} ({line})"


@contextlib.contextmanager
def exits_are_errors() -> Iterator[None]:
    """Within, `sys.exit` in the user's code is an error as any other: Python would end with the code 0, and nothing be done."""
    try:
        yield
    except SystemExit as stop:
        raise RuntimeError(f"code of yours called sys.exit({stop.code!r}), which ends no command of qexp's") from stop
