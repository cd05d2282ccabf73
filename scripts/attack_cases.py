"""Wrong values for every key of every command, made from the types and bounds that stand at the settings.

A key that is added is attacked without a change here. What the types say a value may be must pass, what they say it may not must
be refused; where they do not tell (a text may be a file that is missing), either, but never with a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from qexp.base.checks import Bounds, bounds_of
from qexp.config.analyze import READS
from qexp.config.calibrate import RANGE_METHODS
from qexp.config.correct import CORRECTIONS
from qexp.config.launcher import INNER, LauncherSettings
from qexp.config.policy import POLICIES
from qexp.config.root import Config
from qexp.config.study import StudySettings
from qexp.report import ReportSettings
from qexp.sync import SyncSettings
from qexp.trainings import TrainingsSettings

Want = Literal["refused", "lawful", "either"]
JOB = ("data=digits", "train=smoke", "model=custom", "model.factory=net.py:tiny", "device=cpu", "tracking.enabled=false")
CHECKPOINT = "checkpoint=net.pt"
# Command -> a right one, which takes no time.
BASE = {
    "train": JOB,
    "evaluate": (*JOB, CHECKPOINT),
    "export": (*JOB, CHECKPOINT, "export.cost=false", "export.runtime=[]"),
    "analyze": (*JOB, CHECKPOINT, "task=allocate", "analyze.average_bits=3", "analyze.widths=[2,4]", "analyze.proxy_images=8"),
    "report": ("name=stored",),
    "study": ("name=scalar", "num_images=8"),
    "sync": ("name=stored",),
    "trainings": (),
}
SMALL = {"report": ReportSettings, "study": StudySettings, "sync": SyncSettings, "trainings": TrainingsSettings}
PLAN = ("plan_only=true",)


@dataclass(frozen=True)
class Attack:
    """One command, and what must become of it.

    Args:
        verb: as in `python -m qexp.VERB`.
        kind: of the mistake.
        words: what is typed behind the verb.
        want: `refused`, `lawful` or `either`.
        key: that the message must name.
        value: of which the message must name one form; empty where it need not.
        damage: pattern of files of the store, and the bytes that are put in their place; None puts a folder there.
    """

    verb: str
    kind: str
    words: tuple[str, ...]
    want: Want
    key: str
    value: tuple[str, ...] = ()
    damage: tuple[str, bytes | None] | None = None

    def __str__(self) -> str:
        hurt = f" on {self.damage[0]} = {self.damage[1]!r}" if self.damage else ""
        return " ".join((f"qexp.{self.verb}", *self.words)) + hurt


@dataclass(frozen=True)
class Key:
    """A key and what its type says.

    Args:
        name: dotted.
        kind: `bool`, `int`, `float`, `str`, `list`, `dict` or `group`.
        nullable: None is a value.
        choices: of a Literal, else empty.
        bounds: of the number, or of the elements of the list.
        value: what it is unless it is set.
    """

    name: str
    kind: str
    nullable: bool
    choices: tuple[str, ...]
    bounds: Bounds | None
    value: object

    @staticmethod
    def of(name: str, hint: object, bounds: Bounds | None, value: object) -> Key:
        parts = [hint]
        while any(get_origin(part) in (Union, UnionType, Annotated) for part in parts):
            parts = [inner for part in parts for inner in _opened(part)]
        kinds = [part for part in parts if part is not type(None)]
        choices = tuple(text for part in kinds if get_origin(part) is Literal for text in get_args(part))
        first = get_origin(kinds[-1]) or kinds[-1]  # of str | list[str] the wider
        kind = "group" if is_dataclass(first) else "str" if first is Literal else first.__name__
        return Key(name, kind, len(kinds) < len(parts), choices, bounds, value)

    @property
    def typed(self) -> str:
        """Its value as it would be typed."""
        return json.dumps(self.value, separators=(",", ":")).replace('"', "'")


def _opened(hint: object) -> tuple[object, ...]:
    """The parts of a union; what an annotation is about; else the hint itself."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[:1]
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def keys_of(settings: type, values: Mapping[str, object] | None = None, prefix: str = "") -> Iterator[Key]:
    """Every key of a settings class, groups before their fields.

    Args:
        settings: a dataclass.
        values: as composed; None takes the defaults.
        prefix: of the keys.
    """
    hints, plain, bounds = get_type_hints(settings, include_extras=True), get_type_hints(settings), bounds_of(settings)
    for field in fields(settings):  # type: ignore[arg-type]
        value = _default(field) if values is None else values.get(field.name)
        inner = plain[field.name]
        yield Key.of(prefix + field.name, hints[field.name], bounds.get(field.name), value)
        if is_dataclass(inner):
            yield from keys_of(inner, None if values is None else value or {}, f"{prefix}{field.name}.")  # type: ignore[arg-type]


def _default(field: Any) -> object:
    if field.default_factory is not MISSING:
        return None if is_dataclass(field.default_factory) else field.default_factory()
    return None if field.default is MISSING else field.default


WRONG_TYPES = {
    "bool": ("5", "perhaps"),
    "int": ("text", "1.5", "true"),
    "float": ("text", "true"),
    "str": ("5", "true"),
    "list": ("5", "{a: 1}"),
    "dict": ("5", "text"),
    "group": ("5", "text"),
}
ODD_TEXTS = ("''", "nosuch", "'a\nb'", "x" * 300)


def attacks_on(verb: str, key: Key) -> Iterator[Attack]:
    """Everything that is tried with one key."""
    small = verb in SMALL

    def attack(kind: str, text: str, want: Want = "refused", *more: str, said: tuple[str, ...] = ()) -> Attack:
        base = tuple(word for word in BASE[verb] if word.partition("=")[0] != key.name)
        plan = PLAN if want != "refused" and not small and "plan_only" not in key.name else ()
        value = said or (text, text.strip("'"), text.strip("'")[:20], *_parsed(text))
        return Attack(verb, kind, (*base, f"{key.name}={text}", *more, *plan), want, key.name, value)

    if not (small and key.kind == "str"):  # there any text is one
        yield from (attack("wrong type", text) for text in WRONG_TYPES[key.kind])
        yield attack("wrong type", "{a: 1}") if key.kind not in ("list", "dict", "group") else attack("wrong type", "'a b'")
        yield attack("list", "[1,2]", "either" if key.kind == "list" else "refused")
    yield from (attack("out of range", text) for text in _beyond(key))
    if key.kind == "list":
        yield from (attack("wrong type", text) for text in ("[{a: 1}]", "[[1]]", "[null]"))
        yield attack("out of range", "[]", "either")
    elif key.kind == "int" and (key.bounds is None or key.bounds.high is None):
        yield attack("out of range", "1" + 30 * "0", "either")
    elif key.kind == "str" and not key.choices:
        yield from (attack("odd text", text, "either") for text in ODD_TEXTS)
    want: Want = "refused" if not key.nullable else "lawful" if key.value is None and not small else "either"
    if not (verb == "analyze" and want == "lawful"):
        yield attack("null", "null", want, said=("null", "None", "(missing)"))
    if not small and key.kind not in ("list", "dict", "group"):
        yield attack("list", f"{key.typed},{key.typed}", "refused", said=(key.typed, str(key.value)))
        if verb != "analyze" and not key.name.startswith("hydra"):  # which take one value
            yield attack("sweep", f"{key.typed},{key.typed}", "lawful", "-m")
    yield _typo(verb, key)


def _parsed(text: str) -> tuple[str, ...]:
    """How a message may show a value that was read."""
    if text[0] in "[{":  # a list is shown, or the element that is wrong
        element = text[1:-1].partition(",")[0].replace("null", "None")
        return (text.replace(",", ", ").replace("a:", "'a':"), element, element.replace("a:", "'a':"), "a=1")
    if "\n" in text:
        return ("a b",)  # as lines are joined
    return (str(float(text)),) if text.strip("-").replace(".", "").isdigit() else ()


def _beyond(key: Key) -> Iterator[str]:
    """Values that the bounds at the field, or the choices of its type, leave out."""
    if key.choices:
        yield "nosuch"
    if key.kind == "float":
        yield from ("nan", "inf")
    bounds, form = key.bounds, "[{}]" if key.kind == "list" else "{}"
    if bounds is not None and bounds.low is not None:
        yield form.format(bounds.low if bounds.open_low else bounds.low - 1)
    if bounds is not None and bounds.high is not None:
        yield form.format(int(bounds.high) + 1 if bounds.kind is int else bounds.high + 1)


def _typo(verb: str, key: Key) -> Attack:
    """Its last two letters, or the two before them where these are alike, the other way round; with `+`, which Hydra takes."""
    place = next((at for at in range(len(key.name) - 1, 0, -1) if key.name[at] != key.name[at - 1]), 1)
    name = key.name[: place - 1] + key.name[place] + key.name[place - 1] + key.name[place + 1 :]
    plus = "" if verb in SMALL or name.startswith("hydra") else "+"
    return Attack(verb, "typo", (*BASE[verb], f"{plus}{name}=5"), "refused", name, ("5", "(unknown key)"))


def unread(verb: str) -> set[str]:
    """The keys that the right command of a verb does not read, as the rows and the layers say."""
    idle = {f"calibrate.{name}" for row in RANGE_METHODS.values() if row.name != "minmax" for name in row.settings}
    idle |= {f"correct.{name}" for row in CORRECTIONS.values() for name in row.settings}
    idle |= {f"policy.{name}" for row in POLICIES.values() for name in row.reads}
    idle |= {f"quant.weight.{name}" for name in ("group_size", "rounding_seed", "level", "signed", "pow2_round")}
    idle |= {f"hydra.launcher.{key.name}" for key in keys_of(LauncherSettings) if key.name not in ("inner", *INNER["basic"])}
    idle |= {"calibrate.factory", "train.gamma", "train.milestones"}
    groups = {"qat", "export", "analyze"} - {verb} | (set() if verb == "train" else {"train", "trajectory"})
    idle |= {key.name for key in keys_of(Config) if "." in key.name and key.name.split(".")[0] in groups}
    idle |= {f"analyze.{name}" for name, tasks in READS.items() if "allocate" not in tasks}
    return idle - (set() if verb == "train" else {"train.channels_last", "train.precision"})


def _one_of_each_kind(attacks: list[Attack], turn: int) -> Iterator[Attack]:
    """Another one of each kind in each turn: all commands check a value by the same code."""
    for kind in dict.fromkeys(attack.kind for attack in attacks):
        alike = [attack for attack in attacks if attack.kind == kind]
        yield alike[turn % len(alike)]


def attacks_on_keys(verb: str, values: Mapping[str, object] | None) -> Iterator[Attack]:
    """Everything that is tried with the keys of one command.

    Args:
        verb: of the command.
        values: as composed for the right command; None for the small commands.
    """
    if verb in SMALL:
        for key in keys_of(SMALL[verb]):
            if key.kind != "group":
                yield from attacks_on(verb, key)
        return
    assert values is not None
    idle = unread(verb)
    for key in (*keys_of(Config, values), *keys_of(LauncherSettings, prefix="hydra.launcher.")):
        if key.name.split(".")[0] in ("export", "analyze") and verb != key.name.split(".")[0]:
            key = Key(key.name, key.kind, key.nullable, key.choices, key.bounds, None)  # composed for its own command alone
        attacks = [attack for attack in attacks_on(verb, key) if not (key.name in idle and attack.want != "refused")]
        yield from attacks if verb == "train" else _one_of_each_kind(attacks, list(BASE).index(verb))
        if key.name in idle and key.value not in (None, False, []) and not key.name.startswith("hydra."):
            base = BASE[verb]
            yield Attack(verb, "typed but unread", (*base, f"{key.name}={key.typed}"), "refused", key.name, (key.typed,))
