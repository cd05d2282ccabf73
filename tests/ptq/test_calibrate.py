"""Calibrating a small network: every method, ranks, splits, refusals; and what is saved of it."""

from __future__ import annotations

import copy
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import Batch, QuantSpec
from qexp.config.calibrate import RANGE_METHODS, CalibrateSettings
from qexp.ptq.calibrate import Observations, calibrate
from qexp.ptq.calibration import CALIBRATION_VERSION, Calibration, hash_tensors
from qexp.ptq.range_methods import BehindNorm

SPECS = {
    "0": QuantSpec(scheme="affine", bits=8),
    "2": QuantSpec(scheme="affine", bits=4, granularity="per_channel", axis=1),
    "4": QuantSpec(scheme="symmetric_restricted", bits=4),
}
IMAGES = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(3)) - 0.3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model(IMAGES)  # batch norm's statistics
    return model


def batches(rank: int = 0, world_size: int = 1, size: int = 8):
    index = torch.arange(len(IMAGES))
    return [Batch(IMAGES[part], part, part, len(part)) for part in index.split(size)[rank::world_size]]


def run(name: str = "minmax", *, model: nn.Module | None = None, source=batches, specs=SPECS, **values) -> Calibration:
    settings = {key: values.pop(key) for key in list(values) if key in CalibrateSettings.__dataclass_fields__}
    split = values.pop("images_of", "calib")
    settings = CalibrateSettings(name=name, num_bins=256, **settings)
    return calibrate(model or network(), source, specs, settings, split=split, data_fingerprint="data", **values)


@pytest.mark.parametrize("name", RANGE_METHODS)
def test_every_method_gives_a_range_to_every_place(name):
    model = network().train()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    norm = BehindNorm(model[1].bias, model[1].weight, floor=0.0)
    calibration = run(name, model=model, norms={"2": norm})
    assert list(calibration.ranges) == list(SPECS) and calibration.num_images == 40 and not calibration.waived
    assert calibration.ranges["0"][0].shape == () and calibration.ranges["2"][0].shape == (4,)
    with torch.no_grad():
        out = model[:3].eval()(IMAGES).transpose(0, 1).flatten(1)
    low, high = calibration.ranges["2"]
    assert (low >= 0).all() and (name == "bn" or (high <= out.amax(1)).all()) and (high > 0.3 * out.amax(1)).all()
    if name == "minmax":
        assert torch.equal(low, out.amin(1)) and torch.equal(high, out.amax(1))
    if name == "bn":
        assert torch.equal(high, torch.full((4,), 6.0)) and calibration.methods == {"0": "minmax", "2": "bn", "4": "minmax"}
    model.train()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_places_behind_norms_alone_need_no_images():
    model = network()
    norms = {"2": BehindNorm(model[1].bias, model[1].weight, floor=0.0)}
    calibration = run("bn", model=model, source=lambda: pytest.fail("no images"), specs={"2": SPECS["2"]}, norms=norms)
    assert calibration.num_images == 0 and calibration.methods == {"2": "bn"}


@pytest.mark.parametrize("world_size", [2, 7])
@pytest.mark.parametrize("name", ["ema_minmax", "mse", "percentile"])
def test_ranks_find_what_one_finds(name, world_size):
    """Threads stand for ranks, of which seven are more than there are batches."""
    board, barrier, results = [None] * world_size, threading.Barrier(world_size), [None] * world_size

    def work(rank: int) -> None:
        def gather(value):
            board[rank] = value
            barrier.wait(60)
            values = list(board)
            barrier.wait(60)
            return values

        results[rank] = run(name, source=lambda: batches(rank, world_size), model=copy.deepcopy(model), gather=gather)

    model = network()
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {result.hash for result in results} == {run(name, model=model).hash}


def test_modes_of_modules_are_as_before():
    model = network().train()
    model[1].eval()
    run(model=model)
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_only_the_calibration_split_unless_waived():
    with pytest.raises(UserError, match="calibrate.split=test: allowed is images of calib. calibrate.split=test allows it"):
        run(images_of="test")
    with pytest.raises(UserError, match="images of test"):
        run(split="test")
    calibration = run(images_of="test", split="test")
    assert calibration.waived and calibration.split == "test" and calibration.hash != run().hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": list}, "at least one image"),
        ({"specs": {"7": SPECS["0"]}}, "place=7"),
        ({"specs": {"0": QuantSpec(scheme="lut_kmeans", bits=4)}}, "no clipping range"),
        (
            {"specs": {"0": QuantSpec(scheme="affine", bits=4, granularity="per_group", group_size=8)}},
            "per_tensor or per_channel",
        ),
        ({"name": "kl", "specs": {"0": QuantSpec(scheme="log2", bits=4)}}, "calibrate at 0=kl"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(UserError, match=words):
        run(**change)


def test_a_place_that_is_never_reached_and_one_where_nan_passes():
    model = network()
    model.register_module("idle", nn.ReLU())
    model.forward = nn.Sequential(*list(model)[:5]).forward
    with pytest.raises(UserError, match="place=idle: allowed is a module that a forward calls"):
        run(model=model, specs={"0": SPECS["0"], "idle": SPECS["0"]})
    model = network()
    model[0].weight.data[0] = float("nan")
    with pytest.raises(UserError, match="tensor at 0=holds NaN"):
        run(model=model)


def test_images_that_run_out():
    once = iter(batches())
    with pytest.raises(UserError, match="40 images, then 0"):
        run("mse", source=lambda: once)


def test_methods_and_widths_of_the_same_images_share_their_passes():
    known, model, calls = Observations(), network(), []

    def counted(size: int = 8):
        calls.append(size)
        return batches(size=size)

    narrow = {name: replace(spec, bits=4) for name, spec in SPECS.items()}
    for name, specs, passes in (("minmax", SPECS, 1), ("percentile", SPECS, 2), ("mse", SPECS, 2), ("mse", narrow, 2)):
        shared = run(name, model=model, source=counted, specs=specs, known=known)
        assert shared.hash == run(name, model=model, specs=specs).hash and len(calls) == passes, name
    run(model=model, source=counted, known=known, num_images=24)  # other images, whatever they are
    run(model=model, source=counted, known=known, num_images=24, draw=1)
    model[0].weight.data *= 2
    assert run(model=model, source=counted, known=known, num_images=24, draw=1).hash != shared.hash
    assert len(calls) == 5


@pytest.fixture
def saved(tmp_path) -> tuple[Path, Calibration]:
    calibration, path = run("mse"), tmp_path / "deep" / "ranges.safetensors"
    calibration.save(path)
    return path, calibration


def test_what_is_saved_is_what_is_loaded(saved):
    path, calibration = saved
    again = Calibration.load(path)
    assert again.hash == calibration.hash and again.about == calibration.about and list(path.parent.iterdir()) == [path]
    for point, ends in calibration.ranges.items():
        assert all(torch.equal(*pair) for pair in zip(ends, again.ranges[point], strict=True))
    model = network()
    assert again.weights_hash == hash_tensors(model.state_dict()) == run().weights_hash
    again.check(SPECS, SHAPES)
    assert again.alarms("data") == ()


SHAPES = {"0": (4, 4, 4), "2": (4, 4, 4), "4": (3,)}


def test_ranges_for_something_else_are_refused(saved):
    calibration = Calibration.load(saved[0])
    six = {**SPECS, "0": replace(SPECS["0"], bits=6)}
    for specs, shapes, words in (
        ({**SPECS, "1": SPECS["0"]}, {**SHAPES, "1": (4,)}, r"no 1: allowed is a range for every place .* It has 0, 2, 4"),
        ({"22": SPECS["0"]}, {"22": (4,)}, "Did you mean 2"),
        (six, SHAPES, "0: 1 mse range, found for .* bits=8 .*: allowed is 1, for .* bits=6 "),
        (SPECS, {**SHAPES, "2": (5, 4, 4)}, "2: 4 mse ranges, .*: allowed is 5"),
    ):
        with pytest.raises(UserError, match=words):
            calibration.check(specs, shapes)
    run("minmax").check(six, SHAPES)  # which does not depend on the width


def test_what_is_stamped_on_numbers():
    assert run().alarms("other") == ("calibrated on other data (data, not other)",)
    waived = run(split="test", images_of="test")
    assert waived.alarms("data") == ("calibrated on test images, which are not the calib split",)
    assert len(waived.alarms("other")) == 2
    assert replace(waived, num_images=0).alarms("other") == ()  # ranges of batch norms rest on no images


def test_the_hash_is_of_the_content():
    one = run()
    assert one.hash == run().hash
    low, high = one.ranges["0"]
    moved = replace(one, ranges={**one.ranges, "0": (low, torch.nextafter(high, high + 1))})
    model = network()
    model[4].bias.data[0] += 1
    assert (
        len({one.hash, moved.hash, run(model=model).hash, replace(one, num_images=41).hash, replace(one, split="test").hash}) == 5
    )


def test_files_that_are_not_ours_or_damaged(saved, tmp_path):
    path, calibration = saved
    with pytest.raises(UserError, match="a file that exists"):
        Calibration.load(tmp_path / "none")
    (tmp_path / "text").write_text("no safetensors")
    save_file({"weight": torch.ones(1)}, tmp_path / "weights")
    for name in ("text", "weights"):
        with pytest.raises(UserError, match="a file of calibrated ranges"):
            Calibration.load(tmp_path / name)
    path.with_name("whole").write_bytes(data := bytearray(path.read_bytes()))
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="undamaged"):
        Calibration.load(path)
    with safe_open(saved[0].with_name("whole"), "pt") as file:
        header, ends = json.loads(file.metadata()["calibration"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for change, left in (({"methods": None}, ends), ({"more": 1}, ends), ({"split": "test"}, ends), ({}, {})):
        save_file(left, path, metadata={"calibration": json.dumps(header | change)})
        with pytest.raises(UserError, match="undamaged"):
            Calibration.load(path)
    replace(calibration, version=CALIBRATION_VERSION + 1).save(path)
    with pytest.raises(UserError, match=f"allowed is version {CALIBRATION_VERSION}"):
        Calibration.load(path)
