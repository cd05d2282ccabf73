"""README.md and docs/*.md: every command of theirs is given here, at the size of a test, or stands below with why it is not.

A page of `RUN` is followed from its first block to its last, in one folder, as a reader does: commands run on the bundled
digits for an epoch, files are written as they stand, Python is executed. Of the other pages each command is planned by itself:
composed, checked against data and network, its plan printed (`plan_only`). Both with ResNet-8. A line that begins with `$` is
given as it stands, and what follows it must come back. A block of output is fenced as `text`.
"""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from qexp import merge, report, study, sync, trainings, ui
from qexp.base.keyvalue import parse, run_verb
from qexp.models.cifar_resnet import CifarResNet
from qexp.sweep import run as sweep_run
from qexp.sweep.arguments import check_arguments, typed_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("tutorial.md", "own-network-and-data.md", "own-quantizer.md", "own-range-method.md", "metrics.md", "agents.md")
NOT_RUN = {
    "pip install": "installs",
    "python -m qexp.evaluate model=efficientnet_lite0": "needs images of ImageNet's classes",
    "python3 -m venv": "installs",
    "docker ": "needs Docker and NVIDIA's registry",
    "trtexec ": "needs TensorRT",
    "python -m qexp.export checkpoint=FILE ... export.compare": "files of other tools; tests/deploy/test_compared.py runs them",
    "python -m qexp.export checkpoint=FILE ... export.runtime=litert": "LiteRT's file; tests/deploy/test_targets.py runs it",
    "#!/bin/bash": "needs Slurm",
    "flock ": "needs two nodes",
    "time flock ": "needs two nodes",
    "export ": "sets the shell up for a server",
    "http://127.0.0.1": "an address",
    "MLFLOW_TRACKING_URI=": "a server; tests/tracking/test_registry.py registers the model",
    "curl ": "a server",
    "train  ->  trajectory": "a picture",
    "runs/trainings/<hash>/": "a picture",
    "qexp/            the package": "a picture",
}
VERBS = {
    "merge": (merge.MergeSettings, merge.run),
    "report": (report.ReportSettings, report.run),
    "study": (study.StudySettings, study.run),
    "sync": (sync.SyncSettings, sync.run),
    "trainings": (trainings.TrainingsSettings, trainings.run),
    "ui": (ui.UiSettings, ui.run),
}
HYDRA_VERBS = ("train", "evaluate", "analyze", "export")
# What makes a command small. A key of these replaces the page's own value.
ALWAYS = {"device": "cpu", "tracking.enabled": "false", "draw_figures": "false"}
WHERE_GIVEN = {
    "train.epochs": "1", "train.batch_size": "16", "qat.epochs": "1", "data.num_calib": "16", "data.num_select": "16",
    "data.num_train": "16", "evaluate.num_images": "16", "correct.adaround_iterations": "5", "analyze.probes": "2",
    "analyze.proxy_images": "8", "export.runtime": "onnxruntime", "calibrate.num_images": "8",
}  # fmt: skip
WHEN_RUN = {"analyze": {"analyze.probes": "2"}, "export": {"export.cost": "false", "export.num_compared": "8"}}
QUANTIZED = ("data=digits", "train=smoke", "model=resnet8", "qat=lsq", "qat.init=none", "device=cpu", "tracking.enabled=false")
DROPPED = ("data.root", "data.download", "tracking.uri", "runs_dir", "data.mean", "data.std")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what the fence says, its text."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its command lines, continued ones joined; of a transcript those after `$`."""
        if self.text.startswith("#!"):
            return [self.text]
        lines = [line.strip() for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]
        typed = [line[2:] for line in lines if line.startswith("$ ")]
        return typed or [line for line in lines if not line.startswith("#")]


def blocks_of(path):
    found, start, kind, kept = [], None, "", []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.match(r"\s*```(\w*)$", line)
        if fence and start is None:
            start, kind, kept = number, fence[1], []
        elif fence:
            found.append(Block(path.name, start, kind, "\n".join(kept) + "\n"))
            start = None
        elif start is not None:
            kept.append(line)
    assert start is None, f"{path.name}:{start}: a fence that is not closed"
    return found


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
SHELL = [block for block in BLOCKS if block.kind in ("", "bash", "sh")]
TRANSCRIPTS = [block for block in SHELL if block.text.startswith("$ ")]


def not_run(text):
    return next((why for beginning, why in NOT_RUN.items() if text.startswith(beginning)), None)


def split(command):
    """A command line as (verb, arguments): of qexp, also under torchrun, of make, or of a reader's script; else None."""
    words = shlex.split(command, comments=True)
    if words[0] == "python" and words[1].endswith(".py"):
        return "script", words[1:]
    if words[:1] == ["make"] and len(words) > 1:
        return "make", words[1:]
    module = next((place for place, word in enumerate(words) if word == "-m" and words[place + 1].startswith("qexp.")), None)
    if module is None or words[0] not in ("python", "torchrun"):
        return None
    verb = words[module + 1].removeprefix("qexp.")
    return (verb, words[module + 2 :]) if verb in (*HYDRA_VERBS, *VERBS) else None


def planned_commands():
    """The distinct commands of the pages that are not followed, or slowly, each with where it stands first."""
    found = {}
    for block in SHELL:
        if block.page not in RUN[1:] and block not in TRANSCRIPTS and not not_run(block.text):
            for command in block.commands:
                if not not_run(command):
                    found.setdefault(command, f"{block.page}:{block.line}")
    places = {command: f"{place} {' '.join(command.split())[:60]}" for command, place in found.items()}
    return [pytest.param(command, id=place) for command, place in places.items()]


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A folder of what stands for the placeholders: a tree of images, float networks of 1 and of 3 channels, a policy."""
    made = tmp_path_factory.mktemp("kit")
    generator = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        model = CifarResNet(8, num_classes=10, in_channels=channels)
        with torch.no_grad():
            for values in (*model.parameters(), *(each for each in model.buffers() if each.is_floating_point())):
                values += 0.1 * torch.rand(values.shape, generator=generator)
        torch.save(model.state_dict(), made / f"resnet8_{channels}.pth")
    for part, count in (("train", 8), ("test", 2)):
        for label in range(10):
            for number in range(count):
                path = made / "tree" / part / f"class{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(256, (8 * 8 * 3,), generator=generator, dtype=torch.uint8)
                Image.frombytes("RGB", (8, 8), bytes(pixels.tolist())).save(path)
    policy = made / "choice" / "policy" / "mixed.yaml"
    policy.parent.mkdir(parents=True)
    policy.write_text("defaults: [_base, _self_]\nname: rules\nrules: [{match: conv1.weight, bits: 8}, {kind: conv, bits: 4}]\n")
    return made


def small(verb, arguments, kit, *, run):
    """The arguments at the size of a test: placeholders filled, data and training small, the rest as it stands.

    Args:
        run: the command runs, on the store of this folder; else its plan is printed.
    """
    arguments = [word for word in arguments if word != "..."]
    flags = [word.replace("=results/NAME/allocation/FOLDER", f"={kit / 'choice'}") for word in arguments if word.startswith("-")]
    pairs = [word.partition("=")[::2] for word in arguments if not word.startswith("-")]
    given, fixed = dict(pairs), dict(ALWAYS)
    data = given.get("data", "mnist5k")
    if data in ("imagefolder", "imagenet"):
        fixed |= {"data": "imagefolder", "data.root": str(kit / "tree"), "data.num_calib": "16", "data.num_select": "16"}
    elif data != "custom":
        fixed |= {"data": "digits"}
    if verb == "train":
        fixed |= {"train": "smoke"} | ({"train.batch_size": "16"} if "data.root" in fixed else {})
    fixed |= WHEN_RUN.get(verb, {}) if run else {"plan_only": "true"}
    fixed |= {"model": "resnet8"} if given.get("model") != "custom" else {}
    fixed |= {key: value for key, value in WHERE_GIVEN.items() if key in given and key not in fixed}
    names = {*fixed, *(DROPPED if data != "custom" else ())}
    kept = [f"{key}={filled(value, kit, data=data, run=run)}" for key, value in pairs if key not in names]
    return [*flags, *kept, *(f"{key}={value}" for key, value in fixed.items())]


def filled(value, kit, *, data, run):
    """A value with what stands for its placeholder."""
    if value in ("FILE", "checkpoint.pth") or value.startswith("runs/trainings/HASH/"):
        channels = 3 if data in ("imagefolder", "imagenet") else 1
        return trained(value.rpartition("/")[2]) if run else kit / f"resnet8_{channels}.pth"
    return {"FOLDER": kit / "tree", "PICTURE.jpg": kit / "tree" / "test" / "class0" / "0.png"}.get(value, value)


def trained(file):
    """In this folder's store: the converted network, or the last epoch of the float training."""
    store = Path("runs/trainings")
    converted = sorted(store.glob("*/converted.safetensors"))
    if file == "converted.safetensors":
        return converted[0]
    quantized = {path.parent for path in converted}
    return max(path for path in store.glob("*/epochs/*.safetensors") if path.parents[1] not in quantized)


def give(command, kit, cli, *, run):
    """Run a command line at the size of a test; returns its exit code and what it said."""
    verb, arguments = split(command)
    if verb == "make":
        shown = subprocess.run(["make", "-n", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout
        inner = [line for line in re.findall(r"python (-m qexp\.\w+ .*)", shown) if run]
        return give(f"python {inner[0]}", kit, cli, run=run) if inner else (0, shown)
    if verb == "script":
        sys.argv = [str(filled(word, kit, data="", run=run)) for word in arguments]  # restored by the caller's monkeypatch
        runpy.run_path(arguments[0], run_name="__main__")
        return 0, ""
    if verb in VERBS:
        kind, function = VERBS[verb]
        pairs = [word.partition("=")[::2] for word in arguments]
        arguments = [f"{key}={filled(value, kit, data='', run=run)}" for key, value in pairs]
        if not run:
            return 0, str(parse(kind, arguments))
        sys.argv = [f"qexp.{verb}", *arguments]
        return run_verb(kind, function, ""), ""
    experiment = next((word.partition("=")[2] for word in arguments if word.startswith("experiment=")), None)
    if experiment and not run:  # run by tests/test_experiments.py
        check_arguments(typed_settings(arguments), verb)
        text = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
        return (0, text) if f"-m qexp.{verb} " in text else (1, f"{experiment} is none of qexp.{verb}")
    done = cli(*small(verb, arguments, kit, run=run), verb=verb)
    return done.code, done.out + done.err


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_says_what_it_is(block):
    if block.kind == "text" or (block.kind in ("", "bash", "sh") and not_run(block.text)):
        return
    if block.kind == "python":
        compile(block.text, block.page, "exec")
        assert block.page in RUN, "Python is executed in the pages of RUN"
        return
    assert block in SHELL, f"a block of {block.kind}: fence output as text, commands without a name"
    unknown = [command for command in block.commands if not not_run(command) and split(command) is None]
    assert not unknown, f"neither a command of qexp or make nor in NOT_RUN: {unknown}"


def test_nothing_is_listed_that_no_page_has():
    texts = [command for block in SHELL for command in (block.text, *block.commands)]
    assert [beginning for beginning in NOT_RUN if not any(text.startswith(beginning) for text in texts)] == []
    assert set(RUN) <= {path.name for path in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("command", planned_commands())
def test_a_command_is_accepted(command, kit, cli, monkeypatch):
    monkeypatch.setattr(sweep_run, "estimate", lambda prepared: None)  # of time and disk: it trains for some steps
    if "converted.safetensors" in command:  # of a network that is trained first
        assert cli(*QUANTIZED, verb="train").code == 0
        command = command.replace("runs/trainings/HASH/converted.safetensors", str(trained("converted.safetensors")))
    code, said = give(command, kit, cli, run=False)
    if "submitit_slurm" in command and shutil.which("srun") is None:  # Hydra and the launcher's settings have been passed then
        assert code == 2 and "where there is no Slurm" in said, said
    else:
        assert code == 0, said


@pytest.mark.parametrize("block", TRANSCRIPTS, ids=lambda block: f"{block.page}:{block.line}")
def test_what_is_refused_is_said_so(block, kit, cli):
    (command,) = block.commands
    verb, arguments = split(command)
    own = ["model=resnet8"] if "checkpoint=FILE" in arguments else []
    done = cli(*(word.replace("FILE", str(kit / "resnet8_1.pth")) for word in arguments), *own, verb=verb)
    assert done.code == 2
    for line in block.text.splitlines()[1:]:
        assert line in (done.out + done.err).splitlines(), done.out + done.err


@pytest.mark.parametrize("name", [pytest.param(RUN[0], marks=pytest.mark.slow), *RUN[1:]])
def test_a_page_can_be_followed(name, kit, cli, monkeypatch):
    if name == "tutorial.md":
        pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'qexp[deploy]'")
    monkeypatch.setattr(sys, "argv", sys.argv)
    namespace = {"__name__": "page"}
    for block in (block for block in BLOCKS if block.page == name and block.kind != "text" and block not in TRANSCRIPTS):
        file = re.match(r"# (\w+\.py)\n", block.text)
        if block.kind == "python" and file:
            Path(file[1]).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            exec(compile(block.text, f"{name}:{block.line}", "exec"), namespace)
        for command in block.commands if block.kind != "python" else ():
            if not_run(command):
                continue
            code, said = give(command, kit, cli, run=True)
            assert code == 0, f"{name}:{block.line}: {command}\n{said}"
