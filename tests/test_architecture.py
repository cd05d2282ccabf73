"""The layers of docs/architecture.md, held by reading the source: what no import may do, and how large things may grow.

Every check is a function of a folder that returns its findings; at the end they are tried on a small tree of wrong files.
"""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Package -> its layer, as the table of the document has them: 0 is the lowest.
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.*?) \|", DOCUMENT, re.MULTILINE)
LAYER = {package: int(layer) for layer, cell in ROWS for package in re.findall(r"\b([a-z]\w*)(?:/`|\.py)", cell)}
TOP = tuple(package for package, layer in LAYER.items() if layer == max(LAYER.values()))

# Who may import a library, lazily or not; a library that is not named here is anybody's.
OWNERS = {
    "mlflow": ("tracking",),
    "pandas": ("reporting", "analysis", "studies"),
    "matplotlib": ("reporting", "analysis", "studies"),
    "statsmodels": (),  # what the tests compare with
    "hydra": ("sweep", *TOP),
    "omegaconf": ("sweep", "base", *TOP),
    "onnx": ("deploy",),
    "onnxruntime": ("deploy",),
    "openvino": ("deploy",),
    "ai_edge_litert": ("deploy",),
    "executorch": ("deploy",),
}
# What `--help` and the settings must not load.
HEAVY = {"torch", "torchvision", "mlflow", "pandas", "matplotlib", "scipy", "sklearn", "mlxtend", "statsmodels"}
LIGHT_PACKAGES = ("policy", "config", "train", "evaluate", "analyze", "export")

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Import:
    """One imported name."""

    target: str
    line: int
    eager: bool  # imported when the module is
    typing: bool = False  # for type checkers alone


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    package: str | None
    tree: ast.Module

    def imports(self) -> Iterator[Import]:
        """Every import of the file, those inside functions and under TYPE_CHECKING included."""
        yield from _imports(self.tree, self.name.split(".") if self.is_package else self.name.split(".")[:-1], eager=True)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def _imports(node: ast.AST, package: list[str], *, eager: bool, typing: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _imports(ast.Module(child.body, []), package, eager=False, typing=True)
            yield from _imports(ast.Module(child.orelse, []), package, eager=eager, typing=typing)
            continue
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            above = package[: len(package) - child.level + 1] if child.level else []
            source = ".".join([*above, *([child.module] if child.module else [])])
            names = [f"{source}.{alias.name}" for alias in child.names]
        elif isinstance(child, ast.Call) and ast.unparse(child.func).split(".")[-1] in ("import_module", "__import__"):
            name = child.args[0] if child.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                names = [name.value]
        yield from (Import(name, child.lineno, eager, typing) for name in names)
        yield from _imports(child, package, eager=eager and not lazy, typing=typing)


def package_of(target: str) -> str | None:
    """The package of ours that a dotted name lies in; None for qexp itself and for other people's code."""
    parts = target.split(".")
    if parts[0] != "qexp" or len(parts) < 2 or parts[1].startswith("__"):
        return None
    return parts[1]


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def read_modules(root: Path) -> dict[str, Module]:
    """Dotted name -> module, of everything below qexp/."""
    modules = {}
    for path in sorted((root / "qexp").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = Module(name, path, package_of(name), _parse(path.read_text(encoding="utf-8")))
    return modules


def check_listed(root: Path) -> list[str]:
    """Packages that exist and are not in the table, and the reverse."""
    present = {package for module in read_modules(root).values() if (package := module.package)}
    return [f"{package}: not in the table of layers" for package in sorted(present - set(LAYER))] + [
        f"{package}: in the table of layers, but not in the tree" for package in sorted(set(LAYER) - present)
    ]


def check_layers(root: Path) -> list[str]:
    """Imports that go up, or sideways into another package."""
    wrong = []
    for module in read_modules(root).values():
        for item in module.imports():
            package = package_of(item.target)
            if module.package in LAYER and package in LAYER and package != module.package:
                rise = LAYER[package] - LAYER[module.package]
                if rise >= 0:
                    wrong.append(f"{module.name}:{item.line} imports {item.target}, which goes {'up' if rise else 'sideways'}")
    return wrong


def check_circles(root: Path) -> list[str]:
    """Files that import each other in a circle, by imports within functions too; those for types alone do not count."""
    modules = read_modules(root)
    graph = {
        name: {
            inner
            for item in module.imports()
            if not item.typing and (inner := _resolve(item.target, modules)) not in (None, name, "qexp")
        }
        for name, module in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"a circle: {' -> '.join(reversed(error.args[1]))}"]
    return []


def check_owners(root: Path) -> list[str]:
    """Libraries imported outside the packages that own them, and anything but torch and the standard library in quant/."""
    wrong = []
    for module in read_modules(root).values():
        for item in module.imports():
            library = item.target.split(".")[0]
            if module.package not in OWNERS.get(library, (module.package,)):
                wrong.append(f"{module.name}:{item.line} imports {library}, which belongs to {', '.join(OWNERS[library])}")
            if module.package == "quant" and library not in {"torch", "qexp", *sys.stdlib_module_names}:
                wrong.append(f"{module.name}:{item.line} imports {library}; quant/ knows torch and the standard library")
    return wrong


def check_light(root: Path) -> list[str]:
    """Heavy libraries that come along when a torch-free module is imported, with the way they take."""
    modules = read_modules(root)
    starts = [name for name, module in modules.items() if module.package in LIGHT_PACKAGES]
    wrong = []
    for start in starts:
        ways, seen = [(start,)], {start}
        while ways:
            way = ways.pop()
            for item in modules[way[-1]].imports():
                if item.eager and item.target.split(".")[0] in HEAVY:
                    wrong.append(f"{' -> '.join(way)} imports {item.target}")
                inner = _resolve(item.target, modules)
                if item.eager and inner and inner not in seen:
                    seen.add(inner)
                    ways.append((*way, inner))
    return wrong


def _resolve(target: str, modules: dict[str, Module]) -> str | None:
    """The module of ours that a dotted name lies in: `qexp.base.files.hash_json` is in `qexp.base.files`."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def check_sizes(root: Path) -> list[str]:
    """Files and functions that outgrew their limits."""
    wrong = []
    for folder in ("qexp", "scripts", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            text, where = path.read_text(encoding="utf-8"), path.relative_to(root)
            if len(text.splitlines()) > MAX_FILE_LINES:
                wrong.append(f"{where}: {len(text.splitlines())} lines")
            for node in ast.walk(_parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = node.end_lineno - node.lineno + 1
                    if lines > MAX_FUNCTION_LINES:
                        wrong.append(f"{where}:{node.lineno} {node.name}: {lines} lines")
    return wrong


def check_packages(root: Path) -> list[str]:
    """Package files with content, and missing ones."""
    wrong = [f"{path.relative_to(root)} is not empty" for path in (root / "qexp").glob("*/**/__init__.py") if path.read_text()]
    folders = {path.parent for path in (root / "qexp").rglob("*.py")}
    return wrong + [f"{path.relative_to(root)} has no __init__.py" for path in folders if not (path / "__init__.py").exists()]


def check_conf(root: Path) -> list[str]:
    """YAML that names code."""
    return [
        f"{path.relative_to(root)} holds _target_"
        for path in sorted((root / "conf").rglob("*.yaml"))
        if "_target_" in path.read_text()
    ]


CHECKS = (check_listed, check_layers, check_circles, check_owners, check_light, check_sizes, check_packages, check_conf)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_source_keeps_its_rules(check):
    assert not (wrong := check(ROOT)), "\n" + "\n".join(wrong)


@pytest.fixture
def tree(tmp_path):
    """A small tree without a finding, but for the packages that it does not have."""
    files = {
        "qexp/__init__.py": "__version__ = '0'\n",
        "qexp/base/__init__.py": "",
        "qexp/base/files.py": "import json\n",
        "qexp/quant/__init__.py": "",
        "qexp/quant/affine.py": "import torch\nfrom qexp import __version__\nfrom qexp.base.files import hash_json\n",
        "qexp/data/__init__.py": "",
        "qexp/data/load.py": "import torch\nfrom . import bundle\n",
        "qexp/data/bundle.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from qexp.data import load\n",
        "qexp/config/__init__.py": "",
        "qexp/config/data.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        "qexp/config/root.py": "import qexp.config.data\ndef late():\n    import torch\n",
        "conf/config.yaml": "bits: 8\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


WRONG = {
    "a package that nobody listed": ("qexp/attic/x.py", "", check_listed, "attic"),
    "up": ("qexp/base/x.py", "import qexp.config.root", check_layers, "goes up"),
    "up, inside a function": ("qexp/base/x.py", "def f():\n    from qexp.quant.affine import g", check_layers, "goes up"),
    "up, for types only": ("qexp/base/x.py", "if typing.TYPE_CHECKING:\n    from qexp import data", check_layers, "goes up"),
    "up, by relative import": ("qexp/base/x.py", "from ..quant import affine", check_layers, "qexp.quant.affine"),
    "up, by name": ("qexp/base/x.py", "importlib.import_module('qexp.data.load')", check_layers, "qexp.data.load"),
    "sideways": ("qexp/models/x.py", "from qexp.data.load import load_data", check_layers, "goes sideways"),
    "sideways on the top": ("qexp/train.py", "from qexp.report import main", check_layers, "goes sideways"),
    "a circle": ("qexp/data/bundle.py", "from qexp.data import load", check_circles, "a circle: qexp.data."),
    "a circle, inside a function": ("qexp/data/bundle.py", "def f():\n    from qexp.data import load", check_circles, "circle"),
    "mlflow at large": ("qexp/engine/x.py", "def f():\n    import mlflow.entities", check_owners, "belongs to tracking"),
    "hydra below the sweep": ("qexp/data/x.py", "from omegaconf import DictConfig", check_owners, "omegaconf"),
    "a library in quant": ("qexp/quant/x.py", "import numpy", check_owners, "numpy"),
    "torch in settings": ("qexp/config/model.py", "from torch import Tensor", check_light, "torch.Tensor"),
    "torch behind settings": ("qexp/config/data.py", "if 1:\n    from qexp.data import load", check_light, "-> qexp.data.load"),
    "a long file": ("qexp/data/x.py", "\n" * 301, check_sizes, "301 lines"),
    "a long function": ("tests/x.py", "def f():\n" + "    0\n" * 60, check_sizes, "61 lines"),
    "a full __init__": ("qexp/data/__init__.py", "from qexp.data.load import load_data", check_packages, "not empty"),
    "no package": ("qexp/quant/inner/x.py", "", check_packages, "has no __init__"),
    "code in YAML": ("conf/model/x.yaml", "_target_: os.system", check_conf, "_target_"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "text", "check", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_found(tree, path, text, check, message):
    before = check(tree)
    assert before == [] or check is check_listed
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_text(text)
    new = set(check(tree)) - set(before)
    assert new
    assert all(message in finding for finding in new)
