"""The tiny tower's lesson: what patches show, what it is graded on, and how the projector begins."""

import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch

from conftest import tiny_config
from device_without_float64 import DEVICE, device_without_float64
from transformers_lladav import suite, train_tower
from transformers_lladav.charts import Chart
from transformers_lladav.image_processing_lladav import LladaVImageProcessor
from transformers_lladav.lettering import Style
from transformers_lladav.modeling_lladav import LladaVForMaskedDiffusion
from transformers_lladav.shape_scenes import BACKGROUNDS, Scene, draw_object
from transformers_lladav.signs import Sign
from transformers_lladav.tiny_tower import (
    FAMILIES,
    HEADS,
    PatchPictures,
    PatchReader,
    TowerLesson,
    fit_projector,
    patch_labels,
)

PATCHES = 6
COLOUR, SHAPE, CHARACTER, VALUE, PLACE = range(5)
PAPER = BACKGROUNDS[0]


@pytest.fixture
def lesson() -> TowerLesson:
    """A small model whose pictures are of the suite's size."""
    config = tiny_config()
    config.vision_config.image_size, config.vision_config.patch_size = suite.PICTURE_SIDE, 16
    torch.manual_seed(0)
    return TowerLesson(LladaVForMaskedDiffusion(config))


@pytest.fixture
def pictures() -> PatchPictures:
    side = {"height": suite.PICTURE_SIDE, "width": suite.PICTURE_SIDE}
    processor = LladaVImageProcessor(size=side, patch_size=16, image_grid_pinpoints=[], tiling="square")
    return PatchPictures(processor, PATCHES, first=40, count=24)


def test_heads_name_everything_that_there_is() -> None:
    assert HEADS == {"colour": 8, "shape": 6, "character": 36, "value": 9, "place": 9}


def nothing() -> torch.Tensor:
    """Labels of a picture that shows nothing: every patch still knows its place."""
    labels = torch.zeros(5, PATCHES, PATCHES, dtype=torch.long)
    labels[PLACE] = torch.tensor([[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2 + [[7, 7, 8, 8, 9, 9]] * 2)
    return labels


def test_all_patches_of_a_cell_show_its_object() -> None:
    rng = random.Random(0)
    scene = Scene(
        PAPER, (draw_object(rng, "top", ("red", "star")), draw_object(rng, "bottom right", ("brown", "ring")))
    )
    expected = nothing()
    expected[COLOUR, 0:2, 2:4], expected[SHAPE, 0:2, 2:4] = 1, 4  # red is the first colour, star the fourth shape
    expected[COLOUR, 4:6, 4:6], expected[SHAPE, 4:6, 4:6] = 8, 6
    assert torch.equal(patch_labels(scene, PATCHES), expected)
    # Twice as fine a grid shows every label twice along both sides.
    finer = expected.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(patch_labels(scene, 2 * PATCHES), finer)


def test_patches_of_a_line_show_the_characters_in_their_columns() -> None:
    style = Style(0.1, 0.5, 0.0, 0)
    sign = Sign(PAPER, PAPER, (0, 0, 0), "A7Z", style, middles=(0.26, 0.41, 0.59), top=0.5 - 0.01, height=0.15)
    expected = nothing()
    # 0.14 of the line is in the fourth row of 1/6 each, and 0.01 in the third: less than three tenths of a patch.
    expected[CHARACTER, 3, 1:4] = torch.tensor([1, 26 + 8, 26])
    assert torch.equal(patch_labels(sign, PATCHES), expected)
    lower = Sign(PAPER, PAPER, (0, 0, 0), "A", style, middles=(0.9,), top=0.5 - 0.075, height=0.15)
    assert patch_labels(lower, PATCHES)[:PLACE].nonzero().tolist() == [[CHARACTER, 2, 5], [CHARACTER, 3, 5]]


def test_columns_show_the_bars_in_them() -> None:
    chart = Chart(PAPER, ("green", "pink"), (9, 2), 0.94, 0.7)
    expected = nothing()
    # The bars' middles are 0.08 + 0.22 and 0.08 + 0.66 from the left, in the columns 1 and 4.
    expected[COLOUR, :, 1], expected[VALUE, :, 1] = 2, 9
    expected[COLOUR, :, 4], expected[VALUE, :, 4] = 7, 2
    assert torch.equal(patch_labels(chart, PATCHES), expected)


def test_every_character_and_bar_of_the_suite_has_a_patch_of_its_own() -> None:
    for index in range(300):
        sign, chart = (suite.FAMILIES[name].make("train", index) for name in ("sign", "chart"))
        shown = patch_labels(sign, PATCHES)[CHARACTER]
        assert (shown != 0).sum() == len(sign.text)
        assert len({row for row, _ in shown.nonzero().tolist()}) == 1
        values = patch_labels(chart, PATCHES)[VALUE, 0]
        assert values[values != 0].tolist() == list(chart.values)


def test_the_loss_of_a_reader_that_knows_nothing() -> None:
    reader = PatchReader(hidden_size=8)
    for head in reader.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    labels = torch.ones(2, 5, 2, 2, dtype=torch.long)
    loss, shares = reader(torch.randn(2, 4, 8), labels)
    # Uniform over what each head may name, and nothing.
    assert loss.item() == pytest.approx(math.log(9 * 7 * 37 * 10 * 10), rel=1e-5)
    assert shares.tolist() == [0, 0, 0, 0, 0]  # the first of equals is nothing


def test_patches_that_show_nothing_weigh_a_fifth_and_are_not_counted() -> None:
    reader = PatchReader(hidden_size=8)
    for head in reader.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    reader.heads[COLOUR].bias.data[1] = math.log(3)  # 3 of 8 + 3
    labels = torch.ones(1, 5, 2, 2, dtype=torch.long)
    labels[0, COLOUR] = torch.tensor([[0, 0], [1, 2]])
    loss, shares = reader(torch.randn(1, 4, 8), labels)
    colour = (2 * 0.2 * math.log(11) + math.log(11 / 3) + math.log(11)) / (2 * 0.2 + 2)
    assert loss.item() == pytest.approx(colour + math.log(7 * 37 * 10 * 10), rel=1e-5)
    assert shares.tolist() == [0.5, 0, 0, 0, 0]
    assert not shares.requires_grad


def test_a_few_steps_lower_the_loss_and_change_the_tower_and_the_reader_alone(
    lesson: TowerLesson, pictures: PatchPictures
) -> None:
    items = pictures.__getitems__(list(range(8)))
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    before = {name: value.clone() for name, value in lesson.named_parameters()}
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = lesson(**batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(9 * 7 * 37 * 10 * 10), abs=1)  # uniform, but for the initial weights
    assert losses[-1] < 0.7 * losses[0]
    changed = {name for name, value in lesson.named_parameters() if not torch.equal(value, before[name])}
    # The tower's last norm is left out of LLaDA-V.
    assert changed == {
        name
        for name in before
        if name.startswith(("reader.", "model.model.vision_tower.")) and "post_layernorm" not in name
    }


def test_patches_are_graded_in_reading_order() -> None:
    """Labels that repeat what a head names of the features are all right, and turned round they are not."""
    torch.manual_seed(0)
    reader = PatchReader(hidden_size=24)
    reader.heads = torch.nn.ModuleList([reader.heads[VALUE]] * len(HEADS))
    features = torch.randn(3, PATCHES**2, 24)
    names = reader.heads[0](reader.norm(features)).argmax(-1)  # (pictures, patches)
    labels = names.view(3, 1, PATCHES, PATCHES).expand(-1, len(HEADS), -1, -1)
    assert reader(features, labels)[1].tolist() == [1, 1, 1, 1, 1]
    assert (reader(features, labels.transpose(2, 3))[1] < 0.7).all()


def test_pictures_come_with_the_labels_of_what_they_show(pictures: PatchPictures) -> None:
    assert len(pictures) == 24
    together = pictures.__getitems__([0, 3, 5])
    for number, item in zip([0, 3, 5], together, strict=True):
        assert item["pixel_values"].shape == (3, 96, 96)
        alone = pictures[number]
        assert torch.equal(alone["pixel_values"], item["pixel_values"])
        assert torch.equal(alone["labels"], item["labels"])
        name = random.Random(f"patches {40 + number}").choices(list(FAMILIES), list(FAMILIES.values()))[0]
        family = suite.FAMILIES[name]
        world = family.make("train", 40 + number)
        assert torch.equal(item["labels"], patch_labels(world, PATCHES))
        assert torch.equal(
            item["pixel_values"],
            pictures.image_processor(family.pictures(world), return_tensors="pt").pixel_values[0],
        )
    validation = PatchPictures(pictures.image_processor, PATCHES, 40, 24, split="validation")
    assert not torch.equal(validation[0]["pixel_values"], pictures[0]["pixel_values"])


def test_all_families_are_shown(pictures: PatchPictures) -> None:
    shown = torch.stack([item["labels"] for item in pictures.__getitems__(list(range(24)))]).amax(dim=(0, 2, 3))
    assert (shown > 0).all()


def test_the_projector_begins_with_standardised_features() -> None:
    """Features of any mean and spread count alike; one that never varies is only moved."""
    torch.manual_seed(0)
    hidden, wide = 64, 96
    features = torch.randn(10, 30, hidden) * torch.linspace(0.01, 50, hidden) + torch.linspace(-20, 20, hidden)
    features = features.double()
    features[..., 0] = 7.0
    layers = (torch.nn.Linear(inputs, wide, dtype=torch.float64) for inputs in (hidden, wide))
    projector = SimpleNamespace(**dict(zip(("linear_1", "linear_2"), layers, strict=True)))
    inner = SimpleNamespace(encode_tiles=lambda pixels: features, multi_modal_projector=projector)
    fit_projector(SimpleNamespace(model=inner), torch.empty(10, 3, 96, 96))

    flat = features.flatten(0, 1)
    spread = flat.std(dim=0).clamp(min=1e-3)
    weight = projector.linear_1.weight * spread
    projected = projector.linear_1(flat)
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(wide, dtype=torch.float64))
    torch.testing.assert_close(projected, (flat - flat.mean(dim=0)) / spread @ weight.T)
    # Sums of 64 values of variance 1 (63, as one never varies) with weights of variance 1/64.
    assert projected.var(dim=0).mean().item() == pytest.approx(63 / 64, rel=0.1)
    # Four standard deviations of an estimate from n normal values: 4 sigma / sqrt(2 n).
    for drawn, inputs in ((weight, hidden), (projector.linear_2.weight, wide)):
        sigma = inputs**-0.5
        assert drawn.std().item() == pytest.approx(sigma, abs=4 * sigma / (2 * drawn.numel()) ** 0.5)
    assert not projector.linear_2.bias.any()
    assert all(layer.weight.requires_grad for layer in (projector.linear_1, projector.linear_2))


def test_the_projector_of_a_model_is_fitted_to_its_tower(lesson: TowerLesson, pictures: PatchPictures) -> None:
    pixels = torch.stack([item["pixel_values"] for item in pictures.__getitems__(list(range(6)))])
    fit_projector(lesson.model, pixels)
    inner = lesson.model.model
    with torch.no_grad():
        projected = inner.multi_modal_projector.linear_1(inner.encode_tiles(pixels)).flatten(0, 1)
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(projected.shape[-1]), atol=1e-3, rtol=0)


def test_a_tower_that_was_trained_on_a_device_is_measured_there(
    lesson: TowerLesson, pictures: PatchPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer leaves the model on the device, and the pictures of the validation split come from the CPU."""
    monkeypatch.setattr(train_tower, "MEASURED_PICTURES", 8)
    processor = SimpleNamespace(image_processor=pictures.image_processor)
    elsewhere = copy.deepcopy(lesson)
    expected = train_tower._finish(lesson, processor, seed=0)
    with device_without_float64(elsewhere):
        assert elsewhere.model.device == DEVICE
        assert train_tower._finish(elsewhere, processor, seed=0) == pytest.approx(expected, nan_ok=True)
