"""Rows by name, ours and the user's own."""

import importlib.util
import sys
from dataclasses import dataclass

import pytest

from qexp.base.catalog import Catalog, Info, import_object, is_own
from qexp.base.errors import UserError
from qexp.base.files import hash_file
from qexp.base.user_source import source_hash


@dataclass(frozen=True, kw_only=True)
class Fruit(Info):
    """A row of these tests."""

    sour: bool


def _check(row, code):
    if row.sour and code is not max:
        raise UserError("sour", row.sour, allowed="true only with max")


@pytest.fixture
def fruits():
    rows = [Fruit(name="apple", summary="Grows.", code="builtins:min", sour=False),
            Fruit(name="lemon", summary="Grows too.", code="builtins:max", sour=True)]  # fmt: skip
    return Catalog("fruit", Fruit, rows, check=_check)


def _own(tmp_path, body, name="mine.py"):
    lines = ["from tests.base.test_catalog import Fruit", "def pear():", f"    return {body}"]
    (tmp_path / name).write_text("\n".join(lines))
    return f"{tmp_path / name}:pear"


def test_a_row_without_a_field_fails_where_it_is_written():
    with pytest.raises(TypeError, match="sour"):
        Fruit(name="fig", summary="Grows.", code="builtins:min")


def test_rows_stay_in_order_and_name_their_code(fruits):
    assert fruits.names == ("apple", "lemon") == tuple(fruits)
    assert fruits.load("lemon") is max and import_object("math:pi") == pytest.approx(3.14159, abs=1e-4)
    assert fruits.names_where(lambda row: row.sour) == ("lemon",)


def test_an_unknown_name_is_refused_with_the_nearest(fruits):
    with pytest.raises(UserError, match=r"fruit=aple: allowed is one of apple, custom, lemon. Did you mean apple\?"):
        fruits.choose("aple")


@pytest.mark.parametrize(("name", "factory"), [("custom", None), ("custom", "a.py"), ("custom", "lemon"), ("apple", "a.py:b")])
def test_a_function_belongs_to_custom_alone(fruits, name, factory):
    with pytest.raises(UserError) as refused:
        fruits.choose(name, factory=factory)
    assert refused.value.key == "fruit.factory"


def test_a_users_row_is_found_by_its_text(fruits, tmp_path):
    text = _own(tmp_path, "Fruit(name='pear', summary='Mine.', code=max, sour=True)")
    row = fruits.choose("custom", factory=text)
    assert row.name == "pear" and fruits[text] is row and fruits.load(text) is max and is_own(text)
    assert "pear" not in fruits.names


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("Fruit(name='pear', summary='Mine.', code=max)", "missing 1 required keyword-only argument: 'sour'"),
        ("Fruit(name='pear', summary='Mine.', code=min, sour=True)", "Its row says sour=true: allowed is true only with max"),
        ("Fruit(name='apple', summary='Mine.', code=min, sour=False)", "a name of its own"),
        ("3", "returned int"),
    ],
)
def test_a_users_row_that_omits_or_contradicts_is_one_mistake(fruits, tmp_path, body, said):
    with pytest.raises(UserError) as refused:
        fruits.choose("custom", factory=_own(tmp_path, body))
    assert refused.value.key == "fruit.factory" and said in str(refused.value)


def test_a_changed_file_gives_its_new_row(fruits, tmp_path):
    text = _own(tmp_path, "Fruit(name='pear', summary='Mine.', code=max, sour=True)")
    assert fruits[text].sour
    _own(tmp_path, "Fruit(name='pear_two', summary='Mine.', code=max, sour=False)")
    assert not fruits[text].sour


def test_the_hash_covers_what_a_file_imports(tmp_path, monkeypatch):
    (tmp_path / "alone.py").write_text("import math\nimport numpy\ndef f(): ...\n")
    (tmp_path / "first.py").write_text("import qexp_test_helper\nfrom qexp_test_pack import part\ndef f(): ...\n")
    (tmp_path / "qexp_test_helper.py").write_text("A = 1\n")
    (tmp_path / "qexp_test_pack").mkdir()
    (tmp_path / "qexp_test_pack" / "__init__.py").write_text("")
    (tmp_path / "qexp_test_pack" / "part.py").write_text("from . import deep\n")
    (tmp_path / "qexp_test_pack" / "deep.py").write_text("B = 1\n")
    assert source_hash(f"{tmp_path / 'alone.py'}:f") == hash_file(tmp_path / "alone.py")
    seen = {source_hash(f"{tmp_path / 'first.py'}:f")}
    for changed in ("qexp_test_helper.py", "qexp_test_pack/deep.py", "first.py"):
        (tmp_path / changed).write_text((tmp_path / changed).read_text() + "# more\n")
        seen.add(source_hash(f"{tmp_path / 'first.py'}:f"))
    assert len(seen) == 4
    assert source_hash("no_such_module_here:f") is None


@pytest.mark.parametrize(
    "first, decides",
    [
        ("def f():\n    from qexp_pack import part\n", "qexp_pack/part.py"),
        ("from qexp_pack.deep import low\ndef f(): ...\n", "qexp_pack/deep/mates.py"),  # by `from .. import`
        ("from qexp_pack.deep import low\ndef f(): ...\n", "qexp_pack/mates.py"),  # a relative name that two modules have
        ("import importlib\ndef f():\n    importlib.import_module('qexp_pack.part')\n", "qexp_pack/part.py"),
        ("import importlib\nNAME = 'qexp_pack'\nimportlib.import_module(NAME)\ndef f(): ...\n", "qexp_pack/deep/low.py"),
        ("from qexp_pack import *\ndef f(): ...\n", "qexp_pack/part.py"),
        ("import qexp_elsewhere\ndef f(): ...\n", "sources/elsewhere.py"),  # an editable installation
    ],
)
def test_the_hash_covers_every_way_to_import(tmp_path, monkeypatch, first, decides):
    texts = {
        "first.py": first,
        "qexp_pack/__init__.py": "",
        "qexp_pack/part.py": "A = 1\n",
        "qexp_pack/mates.py": "B = 1\n",
        "qexp_pack/deep/__init__.py": "",
        "qexp_pack/deep/mates.py": "C = 1\n",
        "qexp_pack/deep/low.py": "from . import mates\nfrom .. import mates as others\n",
        "sources/elsewhere.py": "D = 1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    class Editable:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "qexp_elsewhere":
                return importlib.util.spec_from_file_location(name, tmp_path / "sources/elsewhere.py")

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    text = f"{tmp_path / 'first.py'}:f"
    before = source_hash(text)
    (tmp_path / decides).write_text(texts[decides] + "# more\n")
    assert source_hash(text) != before


def test_the_hash_of_a_function_in_a_package_covers_the_packages_above(tmp_path, monkeypatch):
    (tmp_path / "qexp_above" / "nets").mkdir(parents=True)
    for name in ("__init__.py", "nets/__init__.py", "nets/mine.py"):
        (tmp_path / "qexp_above" / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    text = "qexp_above.nets.mine:f"
    before = source_hash(text)
    assert before == hash_file(tmp_path / "qexp_above/nets/mine.py")  # what is empty decides nothing
    (tmp_path / "qexp_above" / "__init__.py").write_text("WIDTH = 8\n")
    assert source_hash(text) != before
