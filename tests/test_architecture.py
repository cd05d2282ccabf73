"""The floors of docs/architecture.md, held by reading the source: what no import may do, and how large things may grow.

Every check is a function of a folder that returns its findings, so that the checks are themselves tried on a small tree of
wrong files at the end.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest first; a file imports from lower steps and from its own room. F0 has two steps: the mathematics may use the nouns.
STEPS = (
    ("F0", ("base",)),
    ("F0", ("quant",)),
    ("F1", ("nn", "policy")),
    ("F2", ("calibrate", "data", "models")),
    ("F3", ("engine", "stats")),
    ("F4", ("qat", "analysis", "deploy", "tracking", "reporting")),
    ("F5", ("schema",)),
    ("F6", ("pipeline", "studies")),
    ("F7", ("train", "evaluate", "analyze", "export", "report", "study", "sync", "trainings", "qexp_launcher")),
)
STEP = {room: step for step, (_, rooms) in enumerate(STEPS) for room in rooms}
TOP = STEPS[-1][1]

# Who may import a library, lazily or not; a library that is not named here is anybody's.
OWNERS = {
    "mlflow": ("tracking",),
    "pandas": ("reporting",),
    "matplotlib": ("reporting",),
    "statsmodels": ("stats",),
    "hydra": ("pipeline", *TOP),
    "omegaconf": ("pipeline", *TOP),
    "onnx": ("deploy",),
    "onnxruntime": ("deploy",),
    "openvino": ("deploy",),
}
# What `--help` and the validation of a whole sweep must not load.
HEAVY = {"torch", "torchvision", "mlflow", "pandas", "matplotlib", "scipy", "sklearn", "mlxtend", "statsmodels"}
LIGHT_ROOMS = ("policy", "schema", "train", "evaluate", "analyze", "export", "qexp_launcher")

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Import:
    """One imported name; `eager` if it is imported when the module is."""

    target: str
    line: int
    eager: bool


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    room: str | None
    tree: ast.Module

    def imports(self) -> Iterator[Import]:
        """Every import of the file, those inside functions and under TYPE_CHECKING included."""
        yield from _imports(self.tree, self.name.split(".") if self.is_package else self.name.split(".")[:-1], eager=True)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def _imports(node: ast.AST, package: list[str], *, eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for inner in child.body:
                yield from _imports(ast.Module([inner], []), package, eager=False)
            yield from _imports(ast.Module(child.orelse, []), package, eager=eager)
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package[: len(package) - child.level + 1] if child.level else []
            source = ".".join([*above, *([child.module] if child.module else [])])
            yield from (Import(f"{source}.{alias.name}", child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).split(".")[-1] in ("import_module", "__import__"):
            name = child.args[0] if child.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(name.value, child.lineno, eager)
        yield from _imports(child, package, eager=eager and not lazy)


def room_of(target: str) -> str | None:
    """The room that a dotted name lies in; None for the package itself and for other people's code."""
    parts = target.split(".")
    if parts[0] not in ("qexp", "hydra_plugins") or len(parts) < 2 or parts[1].startswith("__"):
        return None
    return parts[1]


def read_modules(root: Path) -> dict[str, Module]:
    """Dotted name -> module, of everything below qexp/ and hydra_plugins/."""
    modules = {}
    for path in sorted([*(root / "qexp").rglob("*.py"), *(root / "hydra_plugins").rglob("*.py")]):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = Module(name, path, room_of(name), ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return modules


def check_rooms(root: Path) -> list[str]:
    """Rooms that exist and are not in the table, and the reverse."""
    found = {room for module in read_modules(root).values() if (room := module.room)}
    return [f"{room}: not in the table of floors" for room in sorted(found - set(STEP))] + [
        f"{room}: in the table of floors, but not in the tree" for room in sorted(set(STEP) - found)
    ]


def check_floors(root: Path) -> list[str]:
    """Imports that go up, or sideways into another room."""
    found = []
    for module in read_modules(root).values():
        for item in module.imports():
            room = room_of(item.target)
            if module.room in STEP and room in STEP and room != module.room and STEP[room] >= STEP[module.room]:
                way = "sideways" if STEP[room] == STEP[module.room] else "up"
                found.append(f"{module.name}:{item.line} imports {item.target}, which goes {way}")
    return found


def check_owners(root: Path) -> list[str]:
    """Libraries imported outside the rooms that own them, and anything but torch and the standard library in quant/."""
    found = []
    for module in read_modules(root).values():
        for item in module.imports():
            library = item.target.split(".")[0]
            if module.room not in OWNERS.get(library, (module.room,)):
                found.append(f"{module.name}:{item.line} imports {library}, which belongs to {', '.join(OWNERS[library])}")
            if module.room == "quant" and library not in {"torch", "qexp", *sys.stdlib_module_names}:
                found.append(f"{module.name}:{item.line} imports {library}; quant/ knows torch and the standard library")
    return found


def check_light(root: Path) -> list[str]:
    """Heavy libraries that come along when a torch-free module is imported, with the way they take."""
    modules = read_modules(root)
    starts = [name for name, module in modules.items() if module.path.name == "settings.py" or module.room in LIGHT_ROOMS]
    found = []
    for start in starts:
        ways, seen = [(start,)], {start}
        while ways:
            way = ways.pop()
            for item in modules[way[-1]].imports():
                if item.eager and item.target.split(".")[0] in HEAVY:
                    found.append(f"{' -> '.join(way)} imports {item.target}")
                inner = _resolve(item.target, modules)
                if item.eager and inner and inner not in seen:
                    seen.add(inner)
                    ways.append((*way, inner))
    return found


def _resolve(target: str, modules: dict[str, Module]) -> str | None:
    """The module of ours that a dotted name lies in: `qexp.base.files.hash_json` is in `qexp.base.files`."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def check_sizes(root: Path) -> list[str]:
    """Files and functions that outgrew their limits."""
    found = []
    for folder in ("qexp", "hydra_plugins", "scripts", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            text, where = path.read_text(encoding="utf-8"), path.relative_to(root)
            if len(text.splitlines()) > MAX_FILE_LINES:
                found.append(f"{where}: {len(text.splitlines())} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = node.end_lineno - node.lineno + 1
                    if lines > MAX_FUNCTION_LINES:
                        found.append(f"{where}:{node.lineno} {node.name}: {lines} lines")
    return found


def check_packages(root: Path) -> list[str]:
    """Package files with content, missing ones, and one in the namespace package, which would hide everybody else's plugins.

    Hydra finds a plugin only in a package, so a folder below hydra_plugins/ needs its __init__.py.
    """
    found = [f"{path.relative_to(root)} is not empty" for path in (root / "qexp").glob("*/**/__init__.py") if path.read_text()]
    inner = (root / "hydra_plugins").glob("*/**/*.py")
    folders = {path.parent for path in [*(root / "qexp").rglob("*.py"), *inner]}
    found += [f"{path.relative_to(root)} has no __init__.py" for path in folders if not (path / "__init__.py").exists()]
    if (root / "hydra_plugins" / "__init__.py").exists():
        found.append("hydra_plugins/ has an __init__.py, but is a namespace package")
    return found


def check_conf(root: Path) -> list[str]:
    """YAML that names code."""
    files = sorted((root / "conf").rglob("*.yaml"))
    return [f"{path.relative_to(root)} holds _target_" for path in files if "_target_" in path.read_text(encoding="utf-8")]


CHECKS = (check_rooms, check_floors, check_owners, check_light, check_sizes, check_packages, check_conf)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_house_stands(check):
    findings = check(ROOT)
    assert not findings, "\n" + "\n".join(findings)


def test_the_document_shows_the_same_floors():
    rows = re.findall(r"^\| (F\d) \| (.*?) \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    written = {room: floor for floor, cell in rows for room in re.findall(r"(\w+)(?:/`|\.py)", cell)}
    assert written == {room: floor for floor, rooms in STEPS for room in rooms}


@pytest.fixture
def house(tmp_path):
    """A small tree without a finding, but for the rooms it does not have."""
    files = {
        "qexp/__init__.py": "__version__ = '0'\n",
        "qexp/base/__init__.py": "",
        "qexp/base/files.py": "import json\n",
        "qexp/quant/__init__.py": "",
        "qexp/quant/affine.py": "import torch\nfrom qexp import __version__\nfrom qexp.base.files import hash_json\n",
        "qexp/data/__init__.py": "",
        "qexp/data/load.py": "import torch\nfrom . import settings\n",
        "qexp/data/settings.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        "qexp/schema.py": "import qexp.data.settings\ndef late():\n    import torch\n",
        "conf/config.yaml": "bits: 8\n",
        "hydra_plugins/qexp_launcher/__init__.py": "",
        "hydra_plugins/qexp_launcher/launcher.py": "import hydra\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


WRONG = {
    "a room that nobody listed": ("qexp/attic/x.py", "", check_rooms, "attic"),
    "up": ("qexp/base/x.py", "import qexp.schema", check_floors, "goes up"),
    "up, inside a function": ("qexp/base/x.py", "def f():\n    from qexp.quant.affine import g", check_floors, "goes up"),
    "up, for types only": ("qexp/base/x.py", "if typing.TYPE_CHECKING:\n    from qexp import data", check_floors, "goes up"),
    "up, by relative import": ("qexp/base/x.py", "from ..quant import affine", check_floors, "qexp.quant.affine"),
    "up, by name": ("qexp/base/x.py", "importlib.import_module('qexp.data.load')", check_floors, "qexp.data.load"),
    "sideways": ("qexp/models/x.py", "from qexp.data.load import load_data", check_floors, "goes sideways"),
    "sideways on the top": ("qexp/train.py", "from qexp.report import main", check_floors, "goes sideways"),
    "mlflow at large": ("qexp/engine/x.py", "def f():\n    import mlflow.entities", check_owners, "belongs to tracking"),
    "hydra below the door": ("qexp/data/x.py", "from omegaconf import DictConfig", check_owners, "omegaconf"),
    "a library in quant": ("qexp/quant/x.py", "import numpy", check_owners, "numpy"),
    "torch in settings": ("qexp/quant/settings.py", "from torch import Tensor", check_light, "torch.Tensor"),
    "torch behind settings": ("qexp/data/settings.py", "if 1:\n    from qexp.data import load", check_light, "-> qexp.data.load"),
    "a long file": ("qexp/data/x.py", "\n" * 301, check_sizes, "301 lines"),
    "a long function": ("tests/x.py", "def f():\n" + "    0\n" * 60, check_sizes, "61 lines"),
    "a full __init__": ("qexp/data/__init__.py", "from qexp.data.load import load_data", check_packages, "not empty"),
    "a closed namespace": ("hydra_plugins/__init__.py", "", check_packages, "namespace"),
    "no package": ("qexp/quant/inner/x.py", "", check_packages, "has no __init__"),
    "code in YAML": ("conf/model/x.yaml", "_target_: os.system", check_conf, "_target_"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "text", "check", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_found(house, path, text, check, message):
    before = check(house)
    assert before == [] or check is check_rooms
    (house / path).parent.mkdir(parents=True, exist_ok=True)
    (house / path).write_text(text)
    new = set(check(house)) - set(before)
    assert new
    assert all(message in finding for finding in new)
