"""The command line before Hydra composes it, and Hydra's errors in our words; torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from qexp.base.errors import UserError, UserErrors, nearest
from qexp.config.launcher import unknown_setting
from qexp.config.sweeper import unknown_search_setting
from qexp.config.validate import UnknownKey, all_keys
from qexp.sweep.check import no_training
from qexp.sweep.places import PLACES

GROUP_KEYS = ("experiment",)  # groups without settings of their own


def clean_arguments(arguments: Sequence[str]) -> list[str]:
    """What Hydra shall see: without the rank that torch.distributed.launch adds, and with `-m` and `--option=value` in front.

    Overrides on both sides of an option fail in argparse, so options go first.

    >>> clean_arguments(["--local-rank=1", "bits=4,8", "-m", "seed=1"])
    ['-m', 'bits=4,8', 'seed=1']
    """
    kept = [text for text in arguments if not text.startswith(("--local-rank", "--local_rank"))]
    flags = [text for text in kept if text in ("-m", "--multirun")]
    options = [text for text in kept if text.startswith("--") and "=" in text]
    return flags[:1] + options + [text for text in kept if text not in ("-m", "--multirun", *options)]


def quote_places(arguments: Sequence[str]) -> list[str]:
    """The arguments with the paths quoted that Hydra's grammar would not take as they are: `epoch=3.ckpt`, `a, b.pt`, `~/runs`.

    Args:
        arguments: as `clean_arguments` leaves them.

    >>> quote_places(["checkpoint=epoch=3-step=1200.ckpt", "runs_dir=runs", "model.factory=my nets (2).py:make"])
    ["checkpoint='epoch=3-step=1200.ckpt'", 'runs_dir=runs', "model.factory='my nets (2).py:make'"]
    """
    return [_quoted(word) if "=" in word and _is_place(word.partition("=")[0].lstrip("+")) else word for word in arguments]


def _is_place(key: str) -> bool:
    return key in (*PLACES, "tracking.uri") or key.endswith(".factory")


def _quoted(word: str) -> str:
    """`KEY=VALUE`, quoted where Hydra cannot read it, or reads several values in the name of one file that exists."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    key, _, value = word.partition("=")
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
        if not (override.is_sweep_override() and os.path.exists(value)):
            return word
    except OverrideParseException:
        pass
    paths = value.split(",")
    if len(paths) > 1 and not os.path.exists(value) and all(os.path.exists(path.strip()) for path in paths):
        return f"{key}=" + ",".join(_quoted(f"{key}={path.strip()}").partition("=")[2] for path in paths)  # each of a sweep
    escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value)
    return f"{key}='{escaped}'"


def typed_settings(arguments: Sequence[str]) -> dict[str, str]:
    """The overrides of a command line, key -> value as typed; Hydra's parser tells them apart.

    Args:
        arguments: as `clean_arguments` leaves them.

    Raises:
        UserErrors: words that are no overrides.

    >>> typed_settings(["-m", "bits=4,8", "+quant.input=int", "~verb"])
    {'bits': '4,8', 'quant.input': 'int', 'verb': ''}
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser, typed, errors = OverridesParser.create(), {}, []
    asks_shell = not {"-sc", "--shell-completion"}.isdisjoint(arguments)  # whose install=bash is no setting
    for word in () if asks_shell else arguments:
        if word.startswith("-") or not ("=" in word or word.startswith("~")):
            continue  # an option or its value; what else it may be, Hydra says
        try:
            (override,) = parser.parse_overrides([word])
        except OverrideParseException as error:
            errors.append(hydra_error(error))
        else:
            typed[override.key_or_group] = word.partition("=")[2]
    if errors:
        raise UserErrors(errors)
    return typed


def check_arguments(typed: Mapping[str, str], verb: str = "train") -> None:
    """Raise for overrides whose key no setting has, before Hydra composes them.

    Hydra itself accepts `+quant.bit=4` (it even suggests it) and would then hand on a value that nobody reads.

    Args:
        typed: of `typed_settings`.
        verb: of the command.

    Raises:
        UserErrors: all of them.
    """
    known = [*all_keys(), *GROUP_KEYS]
    groups = {name.rpartition(".")[0] for name in known if "." in name}
    errors: list[UserError] = []
    searches = typed.get("hydra/sweeper") == "optuna"
    for key, value in typed.items():
        owner = key.split(".")[0]
        if owner in ("export", "analyze") and verb != owner:
            errors.append(UserError(key, value, remedy=f"It belongs to python -m qexp.{owner}."))
        elif key == "verb":  # a group of conf/, so the help lists it
            remedy = "The command chooses it: python -m qexp.export, qexp.analyze."
            errors.append(UserError(key, value, remedy=remedy))
        elif key == "qat" and verb == "export" and value != "none":  # else what its conf/ sets is refused first
            errors.append(no_training(value, verb))
        elif key in groups and "_base" in value.split(","):  # the common values of a group's choices, a file beside them
            errors.append(UserError(key, value, allowed="a choice that --help lists", remedy="_base is what all of them share."))
        elif key in groups and value == "null":  # of which Hydra says "Got NoneType"
            errors.append(UserError(key, value, allowed="a name, or settings", remedy="Left out, it is at its default."))
        elif (unknown := unknown_setting(key, value) or (unknown_search_setting(key, value) if searches else None)) is not None:
            errors.append(unknown)
        elif owner.split("/")[0] != "hydra" and key not in known and not _inside_list(key):
            errors.append(UnknownKey(key, value))
    if errors:
        raise UserErrors(errors)


def _inside_list(key: str) -> bool:
    """True for an element of a list-valued setting, `policy.rules.0.bits`."""
    return re.match(r"^[\w.]+\.\d+(\.|$)", key) is not None


def hydra_error(error: Exception) -> UserError:
    """Say an error of Hydra, OmegaConf or PyYAML in our form."""
    if (mark := getattr(error, "problem_mark", None)) is not None:
        what = getattr(error, "problem", None) or "it cannot be read"
        return UserError("file of values", f"{mark.name}, line {mark.line + 1}", allowed="YAML", remedy=f"There {what}.")
    if isinstance(error, UnicodeDecodeError):
        near = error.object[max(0, error.start - 20) : error.end + 20].decode(errors="replace")
        return UserError("file of values", f"...{near!r}...", allowed="text in UTF-8", remedy="Save that file as UTF-8.")
    missing = getattr(error, "missing_cfg_file", None)
    if missing:
        folder, _, name = missing.rpartition("/")
        options: Sequence[str] = getattr(error, "options", None) or ()
        choices = [option for option in options if not option.startswith("_")]
        shown = ", ".join(choices) if len(choices) < 30 else f"one of {len(choices)} (python -m qexp.train --help lists them)"
        return UserError(folder, name, allowed=shown or "an option of the group", remedy=nearest(name, choices))
    cause = error.__cause__
    lines = [line.strip() for line in f"{error}\n{cause if cause else ''}".splitlines() if line.strip()]
    kept = [
        line for line in dict.fromkeys(lines) if not line.startswith(("To append to your config", "full_key:", "object_type="))
    ]
    ambiguous = re.search(r"Ambiguous value for argument '([^']*)'", str(error))
    if ambiguous:
        key, _, value = ambiguous[1].partition("=")
        return UserError(key, value, allowed="one value", remedy="Several values are a sweep: add -m.")
    subject = getattr(error, "override", None) or getattr(error, "full_key", None) or "(not understood)"
    return UserError("command line", subject, allowed="KEY=VALUE and -m", remedy=" ".join(kept))
