"""State dicts from elsewhere: inside other entries, under other prefixes, with another name of the classifier.

A file is seen as one list of dotted names, entries and wrappers included (`state_dict.net._orig_mod.conv1.weight`), and the
prefix is searched under which each tensor of the network has its name and shape. Rejected: a list of known prefixes, which every
trainer adds to. Whatever is harmless is mended and noted; whatever would leave a tensor at its initialization raises, naming all
of it at once.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError, nearest

_FIRST = ("state_dict", "model_state_dict", "model")  # entries that go before others that fit as well, such as averages
_WRAPPERS = ("_orig_mod", "module")  # torch.compile; DataParallel and DDP
_CLASSIFIERS = ("linear", "fc", "classifier", "head")
_SHOWN = 6


def load_weights(model: nn.Module, path: Path | str, *, key: str = "model.weights", entry: str | None = None) -> list[str]:
    """Load a state-dict file into `model`, mending wrapper, prefixes and the classifier's name.

    Args:
        model: overwritten in place; left as it was where an error is raised.
        path: `.safetensors`, else a file of `torch.save`, which is read without executing what it may hold.
        key: the configuration key that the path came from, for the messages.
        entry: dotted name of the entry to take, `model.weights_key`; None takes the one that fits.

    Returns:
        Notes on what was renamed, ignored or left at its value; empty where everything fitted as it was.

    Raises:
        UserError: no such file, a truncated or foreign file, one that needs unpickling, one without tensors, several entries that
            fit, or tensors that are missing, unexpected, of another shape, or without values of their own.
    """
    path = Path(path)
    wanted = model.state_dict()
    state, notes = _find_state(_read(path, key), wanted, path, key, entry)
    _refuse_odd_layouts(state, path, key)
    _check_values(state, wanted, path, key)
    counters = [name for name in wanted if name not in state and _is_counter(name)]
    if counters:
        notes.append(f"{path.name}: {len(counters)} counters num_batches_tracked are not in the file; they keep their value")
    missing = [name for name in wanted if name not in state and name not in counters]
    unexpected = [name for name in state if name not in wanted]
    misshapen = [
        f"{name} {list(value.shape)} in the file, {list(wanted[name].shape)} in the network"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if missing or unexpected or misshapen:
        problems = [
            _listed("missing in the file", missing),
            _listed("not in the network", unexpected),
            _listed("wrong shape", misshapen),
        ]
        hint = nearest(unexpected[0], missing) if unexpected and missing else ""
        remedy = (
            "; ".join(problem for problem in problems if problem)
            + "."
            + (f" {hint}" if hint else "")
            + " Is model= the right one?"
        )
        raise UserError(key, path, allowed=f"a state dict that fits {type(model).__name__}", remedy=remedy)
    notes += _cast_notes(path, state, wanted)
    model.load_state_dict({**{name: wanted[name] for name in counters}, **state})
    return notes


def _read(path: Path, key: str) -> object:
    """What the file holds."""
    if not path.is_file():
        neighbours = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(key, path, allowed="a file that exists", remedy=nearest(path.name, neighbours))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path, device="cpu")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) and _looks_like_torch(path):
            remedy = "It holds Python objects, which qexp does not unpickle; save model.state_dict() instead."
            raise UserError(key, path, allowed="a file of tensors", remedy=remedy) from error
        raise _unreadable(key, path, error) from error
    except Exception as error:  # zip, pickle, EOF and safetensors errors: torch names no common class
        raise _unreadable(key, path, error) from error


def _looks_like_torch(path: Path) -> bool:
    """True for the first bytes of a zip archive or of a pickle."""
    with open(path, "rb") as handle:
        start = handle.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def _unreadable(key: str, path: Path, error: Exception) -> UserError:
    """The error for a file that is truncated or no state dict."""
    reason = (str(error).strip().splitlines() or [""])[0][:160]
    remedy = f"It has {path.stat().st_size} bytes and is truncated or of another format ({type(error).__name__}: {reason})."
    return UserError(key, path, allowed="a file of torch.save or .safetensors", remedy=remedy)


def _find_state(
    content: object, wanted: Mapping[str, Tensor], path: Path, key: str, entry: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the network by its own names, as far as the file has them, and notes."""
    tensors = dict(_by_dotted_name(content))
    if not tensors:
        holds = ", ".join(map(str, content)) or "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(key, path, allowed="a file with a state dict", remedy=f"It holds {holds[:200]}; no tensors by name.")
    if entry is not None and not any(name.startswith(f"{entry}.") for name in tensors):
        entries = _fitting(tensors, wanted, None) or dict.fromkeys(name.partition(".")[0] for name in tensors)
        allowed = [name.rstrip(".") for name in entries if name]
        raise UserError("model.weights_key", entry, allowed=allowed or "null", remedy=nearest(entry, allowed))
    notes = []
    fitting = _fitting(tensors, wanted, entry)
    if not fitting:  # a part of the network was wrapped, so that the wrapper stands within the names
        bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): value for name, value in tensors.items()}
        if len(bare) == len(tensors) and (fitting := _fitting(bare, wanted, entry)):
            tensors = bare
            notes.append(f"{path.name}: removed {' and '.join(_WRAPPERS)} from names")
    prefix = _choose(fitting) if fitting else _nearest_prefix(tensors, wanted, entry)
    others = tuple(other for other in fitting if other != prefix)
    state = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and not name.startswith(tuple(other for other in others if other.startswith(prefix)))
    }
    if prefix:
        notes.append(f"{path.name}: took the tensors under {prefix}")
    if others:
        names = ", ".join(other.rstrip(".") for other in others)
        notes.append(f"{path.name}: it holds other weights that fit, for model.weights_key=NAME: {names}")
    if left := [name for name in tensors if fitting and not name.startswith((prefix, *others))]:
        notes.append(f"{path.name}: {_listed('left out, as they are not in the network', left)}")
    state, renamed = _rename_classifier(state, wanted)
    return state, notes + renamed


def _by_dotted_name(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor that can be reached by names alone; an optimizer's state is numbered, so it has none."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        else:
            yield from _by_dotted_name(value, f"{prefix}{name}.")


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _prefixes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], entry: str | None) -> Counter[str]:
    """Prefix -> how many of the network's names follow it."""
    first = "" if entry is None else f"{entry}."
    counts: Counter[str] = Counter()
    for name in tensors:
        start = len(first) if name.startswith(first) else len(name)
        while start < len(name):
            counts[name[:start]] += name[start:] in wanted
            start = name.find(".", start) + 1 or len(name)
    return +counts


def _fitting(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], entry: str | None) -> list[str]:
    """The prefixes under which every tensor of the network is there, in its shape."""
    needed = {name: value for name, value in wanted.items() if not _is_counter(name)}
    fitting = []
    for prefix, count in _prefixes(tensors, wanted, entry).items():
        if count + 2 < len(needed):  # the classifier's two may have another name
            continue
        under = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        state, _ = _rename_classifier(under, wanted)
        if all(name in state and state[name].shape == value.shape for name, value in needed.items()):
            fitting.append(prefix)
    return fitting


def _rank(prefix: str) -> int:
    """The network's own names go first, then the usual entries."""
    first = prefix.partition(".")[0]
    return -1 if not prefix else _FIRST.index(first) if first in _FIRST else len(_FIRST)


def _choose(fitting: list[str]) -> str:
    """Which of several sets of weights is meant, where no entry was named."""
    best = min(map(_rank, fitting))
    first = [prefix for prefix in fitting if _rank(prefix) == best]
    if len(first) > 1:
        allowed = [prefix.rstrip(".") for prefix in fitting]
        raise UserError("model.weights_key", None, allowed=allowed, remedy="The file holds several sets of weights that fit.")
    return first[0]


def _nearest_prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], entry: str | None) -> str:
    """Where none fits: the prefix that most of the network's names follow, for the message."""
    counts = _prefixes(tensors, wanted, entry)
    if counts:
        return min(counts, key=lambda prefix: (-counts[prefix], _rank(prefix), prefix))
    entries = [entry] if entry is not None else _FIRST
    return next((f"{name}." for name in entries if any(other.startswith(f"{name}.") for other in tensors)), "")


def _refuse_odd_layouts(state: Mapping[str, Tensor], path: Path, key: str) -> None:
    """Raise for tensors that no weight can be copied from as they are."""
    odd = [
        f"{name} ({kind})"
        for name, value in state.items()
        if (kind := "meta" if value.is_meta else "quantized" if value.is_quantized else _layout(value)) != "strided"
    ]
    if odd:
        remedy = f"{_listed('Not dense', odd)}. Save the float network's state dict, each tensor with its values."
        raise UserError(key, path, allowed="dense tensors of float weights", remedy=remedy)


def _layout(value: Tensor) -> str:
    return "nested" if value.is_nested else str(value.layout).removeprefix("torch.")


def _check_values(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, key: str) -> None:
    """Raise UserError for tensors of other than finite real numbers; where the network has infinite ones (a mask), they pass."""
    unreal = [name for name, value in state.items() if value.is_complex()]
    numbers = {name: value for name, value in state.items() if name not in unreal}
    masks = {name for name, value in own.items() if not torch.isfinite(value).all()}
    infinite = [name for name, value in numbers.items() if name not in masks and not torch.isfinite(value.float()).all()]
    integers = [name for name, value in state.items() if _is_integer(value) and name in own and not _is_integer(own[name])]
    titles = {"complex": unreal, "NaN or infinite": infinite, "integers where the network has floats": integers}
    if wrong := [_listed(title, names) for title, names in titles.items() if names]:
        raise UserError(key, path, allowed="a state dict of finite real numbers", remedy=f"{'; '.join(wrong)}.")


def _is_integer(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())


def _rename_classifier(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Give the classifier the network's name for it, where file and network have one each and they differ."""
    theirs = [name for name in _CLASSIFIERS if f"{name}.weight" in state and f"{name}.weight" not in wanted]
    ours = [name for name in _CLASSIFIERS if f"{name}.weight" in wanted and f"{name}.weight" not in state]
    if len(theirs) != 1 or len(ours) != 1:
        return state, []
    old, new = theirs[0] + ".", ours[0] + "."
    renamed = {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in state.items()}
    return renamed, [f"renamed {old}* to {new}*, the network's name for its classifier"]


def _cast_notes(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """A note where the file's tensors have another type than the network's."""
    dtypes = sorted(
        {str(value.dtype).removeprefix("torch.") for name, value in state.items() if value.dtype != wanted[name].dtype}
    )
    return [f"{path.name}: converted from {', '.join(dtypes)}"] if dtypes else []


def _listed(title: str, names: list[str]) -> str:
    """`title (count): a, b, ...`, or an empty string."""
    rest = f", ... {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{title} ({len(names)}): {', '.join(names[:_SHOWN])}{rest}" if names else ""
