"""Vision features are the official numbers for every picture and video, and newlines go where they should."""

import pytest
import torch

import parity
from transformers_lladav import LladaVImageProcessor
from transformers_lladav.features_lladav import pack_frames, pack_single_tile, pack_tiles
from transformers_lladav.tiling_lladav import TileLayout


def encoded(model, images, **settings):
    inputs = LladaVImageProcessor()(images, return_tensors="pt", **settings)
    features = model.get_image_features(inputs.pixel_values, inputs.image_sizes, inputs.image_tile_counts)
    assert [len(item) for item in features.pooler_output] == inputs.num_image_tokens
    return features


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", parity.PICTURES)
def test_every_picture_has_the_official_features(name, kernel, model, kernels, parity_report):
    kernels({"vision_config": kernel})
    reference = parity.tensors("vision")
    features = encoded(model, parity.picture(name))
    parity_report.close(
        f"features: pictures, {kernel}",
        name,
        features.pooler_output[0],
        reference[f"{name}/features"],
        parity.FEATURES,
    )
    parity_report.close(
        f"features: projected base tile, {kernel}",
        name,
        model.model.multi_modal_projector(features.last_hidden_state[0, ::9]),
        reference[f"{name}/projected_tile0_every9th"],
        parity.FEATURES,
    )


@pytest.mark.parametrize("name", parity.PICTURES)
def test_the_tower_has_the_official_output_for_the_base_tile(name, model, parity_report):
    tile = LladaVImageProcessor()(parity.picture(name), return_tensors="pt").pixel_values[:1]
    caught = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    try:
        model.get_image_features(tile, torch.tensor([[384, 384]]), torch.tensor([1]))
    finally:
        hook.remove()
    reference = parity.tensors("vision")[f"{name}/tower_tile0_every9th"]
    parity_report.close("features: tower, base tile", name, caught[0][0, ::9], reference, parity.FEATURES)


@pytest.mark.parametrize("name", ["two_images", "two_images_stacked", "two_images_anyres"])
def test_two_pictures_of_one_sample_have_the_official_features(name, model, configured, parity_report):
    files = parity.numbers("preprocess")["multi_image"][name]["images"]
    settings = parity.GEOMETRY.get(name, {})
    with configured(**{key: value for key, value in settings.items() if key in parity.MODEL_SETTINGS}):
        features = encoded(model, [[parity.picture(file) for file in files]], **settings)
    reference = parity.tensors("vision")[f"{name}/features"]
    parity_report.close("features: two pictures", name, torch.cat(features.pooler_output), reference, parity.FEATURES)


@pytest.mark.parametrize(("position", "stride"), [("grid", 1), ("one_token", 1), ("frame", 4), ("no_token", 4)])
def test_a_video_has_the_official_features(position, stride, model, configured, parity_report):
    inputs = LladaVImageProcessor().preprocess_video(parity.frames(), return_tensors="pt")
    with configured(newline_position=position):
        (tokens,) = model.get_video_features(inputs.pixel_values_videos, inputs.video_frame_counts).pooler_output
    assert len(tokens) == parity.numbers("preprocess")["video"]["token_counts"][position]
    reference = parity.tensors("vision")[f"video/{position}/features"]
    parity_report.close("features: video", position, tokens[::stride], reference, parity.FEATURES)


def test_pictures_encoded_together_equal_pictures_encoded_alone(model):
    names = ["a5_tiny_gray.png", "a4_panorama.jpg", "a3_square_palette.png"]
    together = encoded(model, [parity.picture(name) for name in names]).pooler_output
    for name, tokens in zip(names, together, strict=True):
        torch.testing.assert_close(tokens, encoded(model, parity.picture(name)).pooler_output[0], rtol=0, atol=1e-5)


def test_videos_encoded_together_equal_videos_encoded_alone(model):
    inputs = LladaVImageProcessor().preprocess_video(parity.frames(), return_tensors="pt")
    frames = inputs.pixel_values_videos
    first, second = model.get_video_features(frames, torch.tensor([3, 5])).pooler_output
    for tokens, part in ((first, frames[:3]), (second, frames[3:])):
        torch.testing.assert_close(tokens, model.get_video_features(part).pooler_output[0], rtol=0, atol=1e-5)


def test_tiles_are_put_side_by_side_unpadded_and_every_row_ends_with_a_newline():
    # Two tiles across of 2 x 2 patches; the value of a patch is tile * 10 + its index.
    tiles = torch.tensor([[[tile * 10.0 + patch] for patch in range(4)] for tile in range(3)])
    newline = torch.tensor([-1.0])
    whole = TileLayout(tiles=(1, 2), rows=(0, 2), columns=(0, 4), grid=(2, 4))
    assert pack_tiles(tiles, whole, newline)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 20, 21, -1, 12, 13, 22, 23, -1]
    middle = TileLayout(tiles=(1, 2), rows=(0, 2), columns=(1, 3), grid=(2, 2))
    assert pack_tiles(tiles, middle, newline)[:, 0].tolist() == [0, 1, 2, 3, 11, 20, -1, 13, 22, -1]
    stacked = TileLayout(tiles=(2, 1), rows=(1, 3), columns=(0, 2), grid=(2, 2))
    assert pack_tiles(tiles, stacked, newline)[:, 0].tolist() == [0, 1, 2, 3, 12, 13, -1, 20, 21, -1]


def test_shrinking_averages_neighbours():
    tiles = torch.tensor([[[0.0]] * 4, [[1.0], [3.0], [5.0], [7.0]]])
    shrunk = TileLayout(tiles=(1, 1), rows=(0, 2), columns=(0, 2), grid=(1, 1))
    assert pack_tiles(tiles, shrunk, torch.tensor([9.0]))[4:, 0].tolist() == [4.0, 9.0]


def test_a_picture_with_a_wrong_number_of_tiles_is_refused():
    layout = TileLayout(tiles=(1, 2), rows=(0, 2), columns=(0, 4), grid=(2, 4))
    with pytest.raises(ValueError, match="asks for 3 tiles, but pixel_values hold 2"):
        pack_tiles(torch.zeros(2, 4, 1), layout, torch.zeros(1))


def test_a_single_tile_ends_with_a_newline_if_there_is_one():
    tile, newline = torch.arange(4.0)[:, None], torch.tensor([-1.0])
    assert pack_single_tile(tile, newline)[:, 0].tolist() == [0, 1, 2, 3, -1]
    assert pack_single_tile(tile, None)[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("grid", [4, 4, -1, 4, 4, -1, 8, 8, -1, 8, 8, -1]),
        ("frame", [4, 4, 4, 4, -1, 8, 8, 8, 8, -1]),
        ("one_token", [4, 4, 4, 4, 8, 8, 8, 8, -1]),
        ("no_token", [4, 4, 4, 4, 8, 8, 8, 8]),
    ],
)
def test_newlines_of_a_video_stand_where_the_position_says(position, expected):
    frames = torch.tensor([4.0, 8.0])[:, None, None].expand(2, 16, 1)  # 4 x 4 patches become 2 x 2
    assert pack_frames(frames, torch.tensor([-1.0]), position)[:, 0].tolist() == expected
