"""Bad input, as whole commands in this process: one line, exit code 2, nothing started."""

from pathlib import Path

import pytest
import torch
from PIL import Image

REFUSED = [
    (("bitz=4",), ["bitz=4", "Did you mean bits?"]),
    (("+quant.bit=4",), ["quant.bit=4", "Did you mean bits?"]),
    (("bits=0",), ["bits=0", "an integer from 1 to 16"]),
    (("bits=4,5,6,7,8,64", "-m"), ["bits=64", "an integer from 1 to 16", "job #5 of 6"]),
    (("bits=four",), ["bits=four", "integer"]),
    (("mode=integer",), ["mode=integer", "int, float, half", "Did you mean int?"]),
    (("policy=rules", "policy.rules=[{match: nosuch, bits: 4}]"), ["policy.rules", "nosuch"]),
    (("policy=rules",), ["policy.rules=None", "a list of rules"]),
    (("data=imagefolder",), ["data.root=None", "data=imagefolder needs data.root=FOLDER"]),
    (("data=imagefolder", "data.root=nowhere"), ["data.root=nowhere", "a path that exists"]),
    (("data=cifer10",), ["data=cifer10", "Did you mean cifar10?"]),
    (("model=resnet21", "model.factory=null"), ["model=resnet21", "Did you mean resnet"]),
    (("train.lr=inf",), ["train.lr=inf", "a finite number"]),
    (("train.lr=nan",), ["train.lr=nan", "a finite number"]),
    (("train.precision=fp16",), ["train.precision=fp16", "device=cuda"]),
    (("checkpoint=x.pt",), ["checkpoint=x.pt", "model.pretrained=FILE"]),
    (("data=imagefolder", "data.root=.", "data.classes=absent.tsv"), ["data.classes=absent.tsv", "a path that exists"]),
    (("model.pretrained=absent.pt",), ["model.pretrained=absent.pt", "a path that exists"]),
    (("bits=[4",), ["bits=[4"]),
    (("calibrate=[mse,kl]",), ["calibrate=['mse', 'kl']", "aciq"]),  # of which Hydra would take the last
    (("quant=apot", "calibrate.weights=kl"), ["calibrate.weights=kl", "minmax, percentile or mse for quant=apot"]),
    (("quant=lut_kmeans", "calibrate.weights=mse"), ["calibrate.weights=mse", "minmax", "no range to clip"]),
    (("train.gamma=0.5",), ["train.gamma=0.5", "No job reads it", "train.schedule=step"]),
    (("quant=mxfp4", "bits=8"), ["bits=8", "exactly 4 for quant=mxfp4"]),
    (("quant=minifloat", "quant.weight.format=e2m1", "bits=8"), ["quant.weight.format=e2m1", "a format of 8 bits", "e2m1 has 4"]),
    (("quant=minifloat", "quant.weight.format=e4m3fm"), ["quant.weight.format=e4m3fm", "eXmY"]),
    (("name=a/b",), ["name=a/b"]),
]  # fmt: skip


def said_and_nothing_started(done, parts, *, journal=False):
    assert done.code == 2
    first, *rest = done.err.splitlines()
    assert first == "qexp: nothing was started."
    assert len(rest) == 1, rest
    assert all(part in rest[0] for part in parts), rest
    assert "Traceback" not in done.err + done.out
    assert not Path("runs/trainings").exists() and not Path("results").exists()
    assert Path("runs/journal").exists() == journal


@pytest.mark.parametrize("arguments, parts", REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_bad_input_is_refused_in_one_line(cli, tiny, arguments, parts):
    # Of a sweep that is partly right the journal says which job was refused; other mistakes leave no trace.
    said_and_nothing_started(cli(*tiny, *arguments), parts, journal="-m" in arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(cli, tiny):
    said_and_nothing_started(cli(*tiny, "device=cuda"), ["device=cuda", "cpu here"])


def test_a_truncated_checkpoint_is_refused(cli, tiny):
    torch.save({"0.weight": torch.zeros(1000)}, "cut.pt")
    Path("cut.pt").write_bytes(Path("cut.pt").read_bytes()[:700])
    said_and_nothing_started(cli(*tiny, "checkpoint=cut.pt", verb="evaluate"), ["checkpoint=cut.pt", "truncated"])
    assert not Path("runs/checkpoints").exists()


def test_a_corrupt_image_is_refused(cli, tiny):
    for number, folder in enumerate(("train/a", "train/b", "test/a", "test/b")):
        Path("set", folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), (50 * number, 90, 10)).save(Path("set", folder, "1.png"))
    Path("set/train/b/2.png").write_bytes(Path("set/train/b/1.png").read_bytes()[:45])
    said_and_nothing_started(cli(*tiny, "data=imagefolder", "data.root=set"), ["2.png"])


def test_an_evaluation_says_what_it_will_do_before_it_decodes(cli, tiny):
    for number, folder in enumerate(("train/a", "train/b", "test/a", "test/b")):
        Path("set", folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), (50 * number, 90, 10)).save(Path("set", folder, "1.png"))
    own = (*tiny[2:], "data=imagefolder", "data.root=set", "data.workers=0", "bits=4")
    assert cli(*own, "train=smoke", "trajectory.keep=last").code == 0
    (weights,) = Path("runs").glob("trainings/*/epochs/0001.safetensors")
    Path("set/train/b/2.png").write_bytes(Path("set/train/b/1.png").read_bytes()[:45])
    done = cli(*own, f"checkpoint={weights}", verb="evaluate")
    assert done.code == 2 and "2.png" in done.err and "nothing was started" in done.err
    assert done.out.startswith("1 job: 1 quantized variant\n") and "\n[W4 int] " in done.out
    assert not Path("runs/checkpoints").exists()


@pytest.mark.parametrize("storage", ["ram", "stream"])
def test_calibrating_on_images_that_are_scored_is_refused(cli, tiny, tmp_path, storage):
    noise = torch.Generator().manual_seed(0)
    for number in range(48):
        image = Image.fromarray(torch.randint(256, (8, 8, 3), generator=noise, dtype=torch.uint8).numpy())
        places = ["train"] if number < 36 else ["test"] if number < 44 else ["train", "test"]  # four are in both
        for part in places:
            folder = tmp_path / "tree" / part / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
    own = ("data=imagefolder", f"data.root={tmp_path}/tree", f"data.storage={storage}", "data.workers=0", "train.batch_size=8")
    more = ("data.num_calib=30", "quant=affine", "quant.activation.bits=8")
    parts = ["calibrate.split=calib", "byte for byte", "of its 30 images", "evaluate.split=test"]
    said_and_nothing_started(cli(*tiny, *own, *more), parts)
    done = cli(*tiny, *own, *more[:1], "quant=affine")  # nothing is calibrated
    assert done.code == 0, done.err
    done = cli(*tiny, *own, *more, "calibrate.split=test")  # asked for by name
    assert done.code == 0 and "calibrated on test images" in done.out, done.err
