"""What `--help` says: a screen of verbs, groups and keys, or all there is to know of one key or group; torch-free."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from qexp.base.errors import UserError, UserErrors

if TYPE_CHECKING:
    from qexp.config.reference import KeyInfo

COMMAND = "qexp"
VERBS = {
    "train": "train once, evaluate quantized copies of every epoch",
    "evaluate": "quantize a given checkpoint in many ways, without training",
    "analyze": "what quantizing costs each tensor and layer, and which bits to give them",
    "export": "integer files for runtimes, held against their simulation",
    "report": "tables, figures and page of an experiment",
    "ui": "the results in a browser: an index of all, a page, MLflow",
    "study": "the documents that this grew from, studied",
    "sync": "send to MLflow what it missed",
    "trainings": "list or remove stored trainings",
    "merge": "stores of several machines become one",
    "doctor": "what this machine can do of all this",
    "init": "a copy of the configuration to edit",
}
FIRST_KEYS = (
    ("bits", "mode", "seed", "name", "checkpoint", "data.root", "train.epochs")
    + ("quant.weight.granularity", "quant.activation.bits", "evaluate.num_images", "plan_only")
)  # fmt: skip
WIDTH = 110


def overview(verb: str, options: Mapping[str, Sequence[str]], values: Mapping[str, object]) -> Iterator[str]:
    """The lines of `--help`.

    Args:
        verb: of the command.
        options: group -> its choices.
        values: dotted key -> value, of the command without overrides.
    """
    yield "qexp: what does quantizing this CNN cost, and can the answer be trusted?"
    yield ""
    yield f"  python -m qexp.{verb} KEY=VALUE GROUP=OPTION ... [-m]      -m: lists are swept, bits=4,8,16 quant=linear,affine"
    yield ""
    yield "Verbs (python -m qexp.VERB)"
    yield from (f"  {name:<11}{meaning}" for name, meaning in VERBS.items())
    yield "Groups (GROUP=OPTION; --help GROUP names every option and key)"
    for group, choices in options.items():
        yield textwrap.shorten(f"  {group:<11}{' '.join(choices)}", WIDTH, placeholder=" ...").replace(group, f"  {group:<11}", 1)
    yield "Keys to begin with (--help KEY says what it means, what it may be and where it is read)"
    for name in FIRST_KEYS:
        yield textwrap.shorten(f"{name}={shown(values.get(name))}", WIDTH).join(("  ", ""))
    yield "More: --cfg job prints every key with the value that this command gives it; docs/README.md lists a page for each task,"
    yield "docs/keys.md every key, docs/agents.md what --json and quiet=true print"


def explained(words: Sequence[str], options: Mapping[str, Sequence[str]], values: Mapping[str, object]) -> Iterator[str]:
    """All there is to know of some keys and groups.

    Args:
        words: names of them.
        options: group -> its choices.
        values: dotted key -> value.

    Raises:
        UserErrors: there is no such key or group.
    """
    from qexp.config.reference import key_infos  # only now, so that `qexp --help` reads no settings
    from qexp.config.validate import UnknownKey, all_keys

    infos = key_infos()
    known = {*all_keys(), *options}
    unknown = [
        UserError("--help", word, allowed="a key or a group", remedy=UnknownKey(word, "").remedy)
        for word in words
        if word not in known
    ]
    if unknown:
        raise UserErrors(unknown)
    for word in words:
        if word in options:
            yield from textwrap.wrap(f"{word}: {' '.join(options[word])}", WIDTH, subsequent_indent="    ")
        for name, info in infos.items():
            if name == word or name.startswith(f"{word}."):
                yield from _of_key(info, values)


def _of_key(info: KeyInfo, values: Mapping[str, object]) -> Iterator[str]:
    """A key, its value and its meaning, on lines of `WIDTH` characters."""
    yield f"{info.name}={shown(values[info.name])}" if info.name in values else info.name
    read = f" Read where {info.read_where}." if info.read_where else ""
    yield from textwrap.wrap(
        f"{info.meaning} Allowed: {info.allowed}.{read}", WIDTH, initial_indent="    ", subsequent_indent="    "
    )


def shown(value: object) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def dotted(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted key -> value, of nested mappings."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + str(key): value}
    return flat
