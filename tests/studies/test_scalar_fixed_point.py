"""Documents 004 and 000 as studies."""

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.config.study import StudyData, StudySettings
from qexp.studies import fixed_layers as fixed
from qexp.studies import fixed_point, scalar
from qexp.studies.subject import load_subject


def test_scalar():
    outcome = scalar.run(StudySettings(name="scalar"))
    assert [check.name for check in outcome.failed] == []
    pi = [row for row in outcome.rows if row["value"] == scalar.PI]
    assert [(row["way"], row["bits"], row["code"], row["fits"]) for row in pi] == [
        ("as written", 4, 22, False), ("scaled", 4, 7, True), ("as written", 8, 399, False), ("scaled", 8, 127, True),
    ]  # fmt: skip
    weights = {(row["way"], row["bits"]): row for row in outcome.rows if row["what"] == "weights"}
    assert weights["float", None]["ratio"] == 1 < weights["scaled", 8]["ratio"] < 4 < weights["scaled", 4]["ratio"] < 8
    assert weights["scaled", 4]["prec1"] > weights["as written", 4]["prec1"]


@pytest.fixture(scope="module")
def outcome():
    image = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    return fixed_point.study("noise", image)


class TestFixedPoint:
    def test_checks(self, outcome):
        assert [check.name for check in outcome.failed if check.identity] == []

    def test_plots_of_the_document(self, outcome):
        largest, smallest = outcome.figures
        assert len(largest.curves[0].x) == 80 and largest.marked == {"128 / number of tensors": 64.0}
        at = min(range(80), key=lambda k: abs(largest.curves[0].x[k] - 64))
        assert -1e-4 <= smallest.curves[0].y[at] and largest.curves[0].y[at] < 4 / 64

    def test_rows(self, outcome):
        assert len(outcome.rows) == len(fixed_point.DEPTHS) * 2 * len(fixed_point.ARITHMETICS)
        assert len({tuple(row) for row in outcome.rows}) == 1

    @pytest.mark.parametrize("relu", [False, True])
    def test_integers(self, relu):
        image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        model = fixed.stack(3, relu=relu)
        run = fixed.run_integers(model, image)
        assert run.exact and run.packed and run.num_bytes == 30 + 100 + 100 + 4 * 30
        assert run.output.shape == model(image).shape
        assert (run.output - model(image)).abs().max() < 0.1

    def test_a_stack_of_layers_normalized_by_hand(self):
        model, image = fixed.stack(2, relu=True), torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
        written = [layer for layer in fixed.as_written(model) if isinstance(layer, nn.Conv2d)]
        expected = (written[1]((written[0](image) / 32).relu()) / 32).relu()
        assert torch.equal(fixed.normalized(model, image), expected)

    def test_image(self, tmp_path):
        from PIL import Image

        Image.new("RGB", (5, 4), (255, 0, 51)).save(tmp_path / "a.png")
        label, image = fixed_point.load_image(StudySettings(name="fixed_point", image=str(tmp_path / "a.png")))
        assert label == "a.png" and image.shape == (1, 3, 4, 5)
        assert image[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
        (tmp_path / "b.png").write_text("no image")
        with pytest.raises(UserError, match="image"):
            fixed_point.load_image(StudySettings(name="fixed_point", image=str(tmp_path / "b.png")))


def test_checkpoint_and_images_belong_together():
    with pytest.raises(UserError, match="given together"):
        load_subject(StudySettings(name="scalar", checkpoint="x.pt"))
    with pytest.raises(UserError, match="given together"):
        load_subject(StudySettings(name="scalar", data=StudyData(root="x")))
