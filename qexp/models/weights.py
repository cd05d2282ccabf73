"""State dicts from elsewhere: other wrappers, other prefixes, other names of the classifier.

Whatever is harmless is mended and noted; whatever would leave a tensor at its initialization raises, naming all of it at once.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError, nearest

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and DDP; torch.compile
_CLASSIFIERS = ("linear", "fc", "classifier", "head")
_SHOWN = 6


def load_weights(model: nn.Module, path: Path | str, *, key: str = "model.weights") -> list[str]:
    """Load a state-dict file into `model`, mending wrapper, prefixes and the classifier's name.

    Args:
        model: overwritten in place; left as it was where an error is raised.
        path: `.safetensors`, else a file of `torch.save`, which is read without executing what it may hold.
        key: the configuration key that the path came from, for the messages.

    Returns:
        Notes on what was renamed, ignored or left at its value; empty where everything fitted as it was.

    Raises:
        UserError: no such file, a truncated or foreign file, one that needs unpickling, one without tensors, or tensors that are
            missing, unexpected or of another shape.
    """
    path = Path(path)
    state, notes = _unwrap(_read(path, key), path, key)
    _check_values(state, model.state_dict(), path, key)
    state, renamed = _rename_classifier(state, model.state_dict())
    notes += renamed
    wanted = model.state_dict()
    counters = [name for name in wanted if name not in state and name.endswith(".num_batches_tracked")]
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


def _unwrap(content: object, path: Path, key: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside its wrapper, without prefixes."""
    notes = []
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            notes.append(f"{path.name}: took the entry {wrapper}")
            break
    if not isinstance(content, Mapping) or not content:
        what = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(key, path, allowed="a file with a state dict", remedy=f"It holds {what}.")
    foreign = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if foreign:
        remedy = f"{_listed('entries that are no tensors', foreign)}; known wrappers: {', '.join(_WRAPPERS)}."
        raise UserError(key, path, allowed="a file with a state dict", remedy=remedy)
    state: dict[str, Tensor] = dict(content)
    while prefix := next((item for item in _PREFIXES if all(name.startswith(item) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        notes.append(f"{path.name}: removed the prefix {prefix}")
    return state, notes


def _check_values(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, key: str) -> None:
    """Raise UserError for tensors of other than finite real numbers; where the network has infinite ones (a mask), they pass."""
    sparse = [name for name, value in state.items() if value.layout != torch.strided or value.is_meta or value.is_quantized]
    unreal = [name for name, value in state.items() if value.is_complex()]
    numbers = {name: value for name, value in state.items() if name not in (*sparse, *unreal)}
    masks = {name for name, value in own.items() if not torch.isfinite(value).all()}
    infinite = [name for name, value in numbers.items() if name not in masks and not torch.isfinite(value.float()).all()]
    titles = {"complex": unreal, "NaN or infinite": infinite, "sparse or without values": sparse}
    if wrong := [_listed(title, names) for title, names in titles.items() if names]:
        raise UserError(key, path, allowed="a state dict of finite real numbers", remedy=f"{'; '.join(wrong)}.")


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
