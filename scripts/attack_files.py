"""Files and places that no command can use, functions of a user's that do what they should not, damaged stores, odd words."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from attack_cases import BASE, CHECKPOINT, JOB, PLAN, Attack

NETWORKS = Path(__file__).parents[1] / "tests" / "networks.py"
FACTORIES = """
import sys
from torch import nn
TEXT = "text"
def returns_none(): return None
def returns_a_number(): return 5
def returns_a_class(): return nn.Linear
def returns_a_list(): return [1, 2]
def raises(): raise RuntimeError("raised")
def exits(): sys.exit(0)
def interrupts(): raise KeyboardInterrupt
def needs_more(one, two, *, three): pass
def recurses(): return recurses()
def generates(): yield 1
class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.layer = nn.Linear(in_channels * 64, num_classes)
class ForwardRaises(Net):
    def forward(self, images): raise RuntimeError("raised")
class ForwardExits(Net):
    def forward(self, images): sys.exit(0)
class GivesText(Net):
    def forward(self, images): return "text"
class GivesOther(Net):
    def forward(self, images): return self.layer(images.flatten(1))[:, :3]
"""
OF_ANY = [
    *(f"bad.py:{name}" for name in FACTORIES.replace("def ", "\n").split() if name.endswith("():")),
    "bad.py:TEXT", "bad.py:needs_more", "bad.py:nosuch", "bad.py:", ":make", "bad.py", "nosuch.py:make", "a:b:c",
    "nosuch.module:make",
    "syntax.py:make", "latin.py:make", "raising.py:make", "leaving.py:make", "importing.py:make", "empty.py:make", "broken:make",
    "math:pi", "os:getpid", "sys:exit",
]  # fmt: skip
OF_NETWORKS = [f"bad.py:{name}" for name in ("ForwardRaises", "ForwardExits", "GivesText", "GivesOther")]
SOURCES = {
    "bad.py": FACTORIES, "syntax.py": "def make(:\n", "latin.py": "# größe\n", "raising.py": "raise RuntimeError('raised')\n",
    "leaving.py": "import sys\nsys.exit(0)\n", "importing.py": "import nosuch_module\n", "empty.py": "",
    "broken/__init__.py": "1/0\n",
}  # fmt: skip
# Key of a function -> what makes the command read it.
USERS = {
    "model.factory": (), "data.factory": ("data=custom",), "quant.factory": ("quant=custom",),
    "calibrate.factory": ("calibrate=custom", "quant=affine", "quant.activation.bits=8"), "qat.factory": ("qat=custom",),
    "evaluate.metrics": (),
}  # fmt: skip
VALUES = {  # YAML of the user's, as experiment=NAME
    "syntax": "a: [1,\n", "tab": "# @package _global_\nseed:\t1\n\tbits: 4\n", "twice": "# @package _global_\nbits: 4\nbits: 8\n",
    "items": "# @package _global_\n- 1\n", "text": "text\n", "key": "# @package _global_\nbitz: 4\n", "number": "5\n",
    "type": "# @package _global_\nbits: four\n", "null": "# @package _global_\ntrain: null\n",
    "tag": "bits: !!python/object:os.x 1\n",
    "itself": "defaults: [itself]\nbits: 4\n", "other": "defaults: [nosuch]\nbits: 4\n",
    "anchor": "# @package _global_\nbits: *x\n",
    "loop": "# @package _global_\nbits: ${bits}\n", "nothing": "# @package _global_\nbits: ${nosuch}\n", "void": "",
    "group": "# @package _global_\ndefaults: [{override /policy: nosuch}]\n", "item": "# @package _global_\nbits: [4]\n",
}  # fmt: skip
PLACES = ("file", "file/below", "link", "loop", "/proc/none", "/dev/null", "''", "long/" + "n" * 256, "read_only")
WORDS = (
    "=4", "bits", "--nosuch", "-x", "bits=", "bits==4", "~bits", "~nosuch", "~train", "bits=${nosuch}", "bits=${oc.env:NO_SUCH}",
    "bits=[4", "bits='4", "'bits'=4", "a.b.c=4", "bits.a=4", "train.epochs.a=4", "hydra=5", "hydra/launcher=nosuch",
    "hydra.launcher=5", "hydra/sweeper=nosuch", "hydra.sweeper._target_=x", "hydra.launcher._target_=x", "hydra.mode=nosuch",
    "hydra.verbose=[5]", "bits=range(8,8)", "bits=range(1,2,0)", "bits=choice()", "bits=glob(*)", "bits=interval(1,2)",
    "cases=[[nosuch=1]]", "cases=[['=']]", "cases=[[5]]", "cases=5", "--config-dir=nowhere", "--config-name=nosuch",
    "--config-path=no",
    "hydra.searchpath=[nowhere]", "experiment=nosuch", "experiment=5", "data@train=digits", "model=[resnet20]", "bits=4:5",
    "bits={4: 5}", "bits=shuffle(5)", "bits=sort(1,a)", "seed=-0", "name=${name}", "name=${runs_dir}", "\udcff=4", "bits=\udcff",
)  # fmt: skip
SMALL_WORDS = {
    "report": (
        "name",
        "=5",
        "name==5",
        "--name=x",
        "-x",
        "metrics=[nosuch]",
        "metrics=nosuch",
        "format=nosuch",
        "metrics=[",
        "name=a/b",
    ),
    "study": (
        "name=nosuch",
        "model=nosuch",
        "checkpoint=nowhere",
        "data.root=nowhere",
        "image=nowhere",
        "data=5",
        "data.mean=[a]",
    ),
    "sync": (
        "name=nosuch",
        "uri=nosuch://x",
        "uri=sqlite:////proc/none/x",
        "uri=file:///proc/none",
        "uri=sqlite:///file",
        "name=..",
    ),
    "trainings": ("remove=nosuch", "remove=,", "remove=../x", "remove=", "-m", "remove=all,incomplete"),
}
DAMAGE = (b"", b"{", b"[]\n", b"null\n", b'{"kind": 5}\n', b"\xff\xfe\x00\n", None)  # None: a folder of that name
STORED = (
    "runs/journal/*.jsonl", "runs/trainings/*/training.json", "runs/trainings/*/train.jsonl", "runs/trainings/*/variants/*.jsonl",
    "runs/trainings/*/predictions/*/*", "runs/trainings/*/epochs/*", "results/stored/table.csv",
)  # fmt: skip
READERS = (
    ("report", ("name=stored",)), ("report", ("name=stored", "verify=true")), ("sync", ("name=stored",)), ("trainings", ()),
    ("train", (*JOB, "name=stored", "bits=4")),
)  # fmt: skip


def make_template(folder: Path) -> None:
    """Fill a folder with what the commands are given, right and wrong."""
    folder.mkdir()
    shutil.copy(NETWORKS, folder / "net.py")
    for name, text in SOURCES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="latin-1")
    (folder / "mine/experiment").mkdir(parents=True)
    for name, text in VALUES.items():
        (folder / "mine/experiment" / f"{name}.yaml").write_text(text)
    (folder / "mine/experiment/latin.yaml").write_bytes("# @package _global_\nname: größe\n".encode("latin-1"))
    (folder / "file").touch()
    (folder / "link").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "read_only").mkdir(mode=0o500)
    for name in ("empty", "no_images/train/a", "no_images/test/a", "text/train/a", "text/test/a"):
        (folder / "trees" / name).mkdir(parents=True)
    for part in ("train", "test"):
        (folder / "trees/text" / part / "a/1.png").write_text("text")
    _write_checkpoints(folder)


def _write_checkpoints(folder: Path) -> None:
    """A right state dict, `net.pt`, and many that are none, in `weights/`."""
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    exec(compile(NETWORKS.read_text(), str(NETWORKS), "exec"), namespace)
    network = namespace["tiny"](10, 1)  # type: ignore[operator]
    state = network.state_dict()
    torch.save(state, folder / "net.pt")
    place = folder / "weights"
    place.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants to be rid of these; people have files of them
        torch.jit.script(torch.nn.ReLU()).save(str(place / "script.pt"))
        quantized = torch.quantize_per_tensor(state["5.weight"], 0.1, 0, torch.qint8)
    odd = {
        "list": [1, 2], "number": 5, "none": None, "nothing": {}, "keys": {f"{name}_": value for name, value in state.items()},
        "shapes": {name: torch.zeros(3) for name in state}, "names": dict(enumerate(state.values())), "texts": {"a": "b"},
        "complex": {name: torch.as_tensor(value).to(torch.complex64) for name, value in state.items()},
        "sparse": state | {"0.weight": state["0.weight"].to_sparse()}, "meta": state | {"0.weight": state["0.weight"].to("meta")},
        "quantized": state | {"5.weight": quantized},
        "nan": state | {"0.weight": state["0.weight"] * torch.nan}, "bool": state | {"0.weight": state["0.weight"] > 0},
        "module": torch.nn.Linear(2, 2), "half": {name: value for name, value in state.items() if name[0] == "0"},
    }  # fmt: skip
    for name, content in odd.items():
        torch.save(content, place / f"{name}.pt")
    raw = {
        "empty.pt": b"",
        "text.pt": b"text",
        "cut.pt": (folder / "net.pt").read_bytes()[:700],
        "pickle.pt": pickle.dumps(print),
    }
    raw |= {
        "text.safetensors": b"text",
        "header.safetensors": b"\xff" * 64,
        "cut.safetensors": b"\x10" + 7 * b"\0" + b'{"a": {}}',
    }
    for name, data in raw.items():
        (place / name).write_bytes(data)
    with zipfile.ZipFile(place / "zip.pt", "w") as archive:
        archive.writestr("a", "b")
    (place / "folder.pt").mkdir()
    (place / "link.pt").symlink_to("nowhere")
    (place / "loop.pt").symlink_to("loop.pt")


def attacks_on_files(folder: Path) -> Iterator[Attack]:
    """Everything that is tried with files, places, functions, words and stores.

    Args:
        folder: as `make_template` filled it.
    """
    weights = [str(path.relative_to(folder)) for path in sorted((folder / "weights").iterdir())] + [
        "nowhere.pt",
        "/dev/null",
        ".",
    ]
    for path in weights:
        for verb in ("evaluate", "export", "analyze"):
            words = tuple(word for word in BASE[verb] if word != CHECKPOINT)
            yield _refused(verb, "checkpoint", words, "checkpoint", path)
        yield _refused("train", "checkpoint", JOB, "model.weights", path)
        yield _refused("train", "ranges", (*JOB, "quant=affine", "quant.activation.bits=8"), "calibrate.file", path)
        yield Attack("study", "checkpoint", ("name=seed_puzzle", f"checkpoint={path}", "data.root=trees/empty"), "refused", "")
        yield _refused("analyze", "image", (*JOB, CHECKPOINT, "task=profile"), "image", path)
    for key, more in USERS.items():
        base = tuple(word for word in JOB if not word.startswith("model.factory")) if key == "model.factory" else JOB
        for text in [*OF_ANY, *(OF_NETWORKS if key == "model.factory" else ())]:
            form = "[{}]" if key == "evaluate.metrics" else "{}"
            attack = _refused("train", "function", (*base, *more), key, form.format(f"'{text}'"))
            yield replace(attack, value=(text,))
    for name in (*VALUES, "latin"):
        yield Attack("train", "YAML", ("--config-dir=mine", *JOB, f"experiment={name}"), "refused", "")
    yield from _attacks_on_places()
    for tree in ("trees/empty", "trees/no_images", "trees/text", "file", "nowhere", "net.py"):
        yield replace(_refused("train", "tree", (*JOB, "data=imagefolder"), "data.root", tree), key="")
    yield from (Attack("train", "word", (*JOB, *more, word), "either", "") for word in WORDS for more in ((), ("-m", *PLAN)))
    yield from (Attack(verb, "word", (*BASE[verb], word), "either", "") for verb, words in SMALL_WORDS.items() for word in words)
    for pattern in STORED:
        for data in DAMAGE:
            for verb, words in READERS:
                yield Attack(verb, "damaged store", words, "either", "", damage=(pattern, data))


def _refused(verb: str, kind: str, words: tuple[str, ...], key: str, value: str) -> Attack:
    return Attack(verb, kind, (*words, f"{key}={value}"), "refused", key, (value, value.strip("'")))


def _attacks_on_places() -> Iterator[Attack]:
    """Folders that cannot be written to, or read from."""
    places = [place for place in PLACES if place != "read_only" or os.geteuid() != 0]  # to root nothing is
    for place in places:
        shown = (place.strip("'") or "(empty)", "None")
        for verb in ("train", "evaluate", "export", "analyze"):
            for key in ("runs_dir", "results_dir", *(("export.folder",) if verb == "export" else ())):
                yield replace(_refused(verb, "place", BASE[verb], key, place), value=shown)
        for verb, key in (("report", "results_dir"), ("study", "results_dir"), ("report", "runs_dir")):
            yield Attack(verb, "place", (*BASE[verb], f"{key}={place.strip(chr(39))}"), "refused", "", ())
        for verb in ("sync", "trainings"):
            yield Attack(verb, "place", (*BASE[verb], f"runs_dir={place.strip(chr(39))}"), "either", "")
    for verb in ("train", "evaluate", "export"):
        yield Attack(verb, "place", (*BASE[verb], "runs_dir=not/yet", "results_dir=there", *PLAN), "lawful", "")
