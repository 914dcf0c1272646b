"""Pictures become the official tiles in whatever form they come, and bad ones are named with the reason."""

import json
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import parity
from transformers_lladav import LladaVImageProcessor
from transformers_lladav.image_processing_lladav import PAD_COLOUR, open_picture

LANDSCAPE = "a1_landscape.jpg"
TINY = "a5_tiny_gray.png"


def assert_official_tiles(report, group, case, pixels, expected):
    reference = parity.tensors("preprocess")[expected["subsample_key"]]
    assert list(pixels.shape) == expected["tile_tensor_shape"]
    report.close(group, case, pixels[:, :, ::16, ::16], reference, parity.PIXELS)
    tiles = pixels.double().flatten(1)
    for name, ours in (("mean", tiles.mean(dim=1)), ("std", tiles.std(dim=1, correction=0))):
        theirs = torch.tensor(expected[f"per_tile_{name}"])
        report.close(f"{group}, {name} of a tile", case, ours, theirs, parity.PIXELS)


@pytest.mark.parametrize("name", parity.PICTURES)
def test_the_only_picture_of_a_sample_has_the_official_tiles(name, image_processor, parity_report):
    entry = parity.numbers("preprocess")["images"][name]
    expected = entry["variants"]["rgb"]
    got = image_processor(parity.picture(name), return_tensors="pt")
    assert_official_tiles(parity_report, "pixels: tiled", name, got.pixel_values, expected)
    assert got.num_image_tokens == [expected["total_image_tokens"]]
    assert got.image_tile_counts.tolist() == [expected["n_tiles_with_base"]]
    assert got.image_sizes.tolist() == [entry["size_wh"][::-1]]


@pytest.mark.parametrize("name", parity.PICTURES)
def test_a_picture_padded_to_a_square_has_the_official_pixels(name, image_processor, parity_report):
    expected = parity.numbers("preprocess")["images"][name]["pad"]
    got = image_processor(parity.picture(name), tiling="square", return_tensors="pt")
    assert_official_tiles(parity_report, "pixels: padded square", name, got.pixel_values, expected)
    assert got.num_image_tokens == [730]


def test_video_frames_have_the_official_pixels(image_processor, parity_report):
    video = parity.numbers("preprocess")["video"]
    got = image_processor.preprocess_video(parity.frames(), return_tensors="pt")
    assert_official_tiles(parity_report, "pixels: video frames", "video", got.pixel_values_videos, video)
    assert got.video_frame_counts.tolist() == [8]
    assert got.num_video_tokens == [video["token_counts"]["grid"]]


@pytest.mark.parametrize("position", ["grid", "frame", "one_token", "no_token"])
def test_video_tokens_follow_the_newline_position(position, image_processor):
    got = image_processor.preprocess_video(parity.frames(), newline_position=position)
    assert got.num_video_tokens == [parity.numbers("preprocess")["video"]["token_counts"][position]]


@pytest.mark.parametrize("name", ["two_images", "two_images_stacked", "two_images_anyres"])
def test_two_pictures_of_one_sample_have_the_official_number_of_tokens(name, image_processor, parity_report):
    expected = parity.numbers("preprocess")["multi_image"][name]
    pictures = [parity.picture(file) for file in expected["images"]]
    settings = parity.GEOMETRY.get(name, {})
    got = image_processor([pictures], **settings)
    parity_report.same("tokens: two pictures", name, [sum(got.num_image_tokens)], [expected["total_image_tokens"]])


def test_a_flat_list_is_one_sample_each_and_a_nested_list_one_sample(image_processor):
    pictures = [parity.picture(LANDSCAPE), parity.picture(TINY)]
    assert image_processor(pictures).image_tile_counts == [5, 2]
    assert image_processor([pictures]).image_tile_counts == [1, 1]
    assert image_processor([[pictures[0]], [pictures[1]]]).image_tile_counts == [5, 2]
    assert image_processor([[pictures[0]], pictures]).image_tile_counts == [5, 1, 1]


@pytest.mark.parametrize(
    "convert",
    [
        lambda picture: parity.FOLDER / "images" / LANDSCAPE,
        lambda picture: str(parity.FOLDER / "images" / LANDSCAPE),
        np.asarray,
        lambda picture: np.asarray(picture).transpose(2, 0, 1),
        lambda picture: torch.from_numpy(np.array(picture)),
        lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1),
        lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255,
    ],
    ids=["path", "string", "numpy", "numpy channels first", "torch", "torch channels first", "torch 0 to 1"],
)
def test_every_kind_of_input_gives_the_pixels_of_the_pil_image(convert, image_processor):
    picture = parity.picture(LANDSCAPE)
    expected = image_processor(picture, return_tensors="pt")
    for images in (convert(picture), [convert(picture)], [[convert(picture)]]):
        got = image_processor(images, return_tensors="pt")
        assert torch.equal(got.pixel_values, expected.pixel_values)
        assert torch.equal(got.image_sizes, expected.image_sizes)


@pytest.mark.parametrize("kind", ["np", "pt", None])
def test_tensors_come_in_the_kind_that_was_asked_for(kind, image_processor):
    pixels = image_processor(parity.picture(TINY), return_tensors=kind).pixel_values
    assert pixels.shape == (2, 3, 384, 384)
    assert str(pixels.dtype).endswith("float32")
    assert isinstance(pixels, torch.Tensor if kind == "pt" else np.ndarray)


def test_a_grey_array_is_a_grey_picture(image_processor):
    grey = np.full((5, 7), 51, dtype=np.uint8)
    got = image_processor(grey, tiling="square", return_tensors="pt")
    assert got.image_sizes.tolist() == [[5, 7]]
    # 51 / 255 = 0.2, and (0.2 - 0.5) / 0.5 = -0.6.
    assert got.pixel_values[0, :, 192, 192].tolist() == pytest.approx([-0.6] * 3, abs=1e-6)


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
def test_an_array_with_transparency_is_the_picture_without(first, image_processor):
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    expected = image_processor(Image.fromarray(picture), tiling="square", return_tensors="pt")
    got = image_processor(picture.transpose(2, 0, 1) if first else picture, tiling="square", return_tensors="pt")
    assert got.image_sizes.tolist() == [[30, 40]]
    assert torch.equal(got.pixel_values, expected.pixel_values)


def test_a_colour_array_of_four_rows_has_no_transparency(image_processor):
    rows = np.full((4, 10, 3), 51, dtype=np.uint8)
    assert image_processor(rows, tiling="square", return_tensors="pt").image_sizes.tolist() == [[4, 10]]


def test_padding_is_grey_127_and_the_canvas_is_black(image_processor):
    white = Image.new("RGB", (384, 96), "white")
    square = image_processor(white, tiling="square", return_tensors="pt").pixel_values
    assert square[0, :, 0, 0].tolist() == pytest.approx([PAD_COLOUR[0] / 127.5 - 1] * 3, abs=1e-6)
    assert square[0, :, 192, 0].tolist() == [1.0] * 3
    tiled = image_processor(white, image_grid_pinpoints=[[384, 384]], return_tensors="pt").pixel_values
    assert tiled[1, :, 0, 0].tolist() == [-1.0] * 3
    assert tiled[0].min() == 1.0


def test_a_picture_file_is_turned_upright(tmp_path, image_processor):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    Image.new("RGB", (40, 20)).save(tmp_path / "lying.jpg", exif=exif)
    assert image_processor(tmp_path / "lying.jpg").image_sizes == [(40, 20)]


def test_no_pinpoints_turn_tiling_off(image_processor):
    got = image_processor(parity.picture(LANDSCAPE), image_grid_pinpoints=[])
    assert got.image_tile_counts == [1]
    assert got.num_image_tokens == [730]
    assert image_processor(parity.picture(LANDSCAPE), tiling="square", single_tile_newline=False).num_image_tokens == [
        729
    ]


def test_a_long_video_is_sampled_uniformly_with_both_ends(image_processor):
    video = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in range(100)]
    got = image_processor.preprocess_video(video, max_video_frames=4)
    shades = ((got.pixel_values_videos[:, 0, 0, 0] + 1) * 127.5).round().tolist()
    assert shades == [0, 33, 66, 99]
    assert len(image_processor.preprocess_video(video).pixel_values_videos) == 32
    assert len(image_processor.preprocess_video(video[:31]).pixel_values_videos) == 31


def test_settings_survive_saving_and_loading(tmp_path):
    changed = LladaVImageProcessor(
        image_grid_pinpoints=[[384, 384], [384, 768]], max_tiles=2, newline_position="frame", tiling="tiles"
    )
    changed.save_pretrained(tmp_path)
    loaded = LladaVImageProcessor.from_pretrained(tmp_path)
    for name in ("image_grid_pinpoints", "max_tiles", "newline_position", "tiling", "single_tile_newline", "size"):
        assert getattr(loaded, name) == getattr(changed, name)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["image_processor_type"] == "LladaVImageProcessor"


def write_text(folder):
    (folder / "notes.jpg").write_text("not a picture")
    return folder / "notes.jpg"


def write_truncated(folder):
    whole = (parity.FOLDER / "images" / LANDSCAPE).read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    return folder / "half.jpg"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: "nowhere.jpg", r"image 2 \(nowhere.jpg\) cannot be read as a picture: there is no such file"),
        (lambda folder: folder / "gone.png", r"image 2 \(.*gone.png\) cannot be read .*No such file"),
        (write_text, r"image 2 \(.*notes.jpg\) cannot be read as a picture: cannot identify image file"),
        (write_truncated, r"image 2 \(.*half.jpg\) cannot be read as a picture: image file is truncated"),
        (lambda folder: folder, r"image 2 \(.*\) cannot be read as a picture: .*[Ii]s a directory"),
        (lambda folder: np.zeros((0, 4, 3), np.uint8), r"image 2 cannot .* an array of shape \(0, 4, 3\) has no"),
        (lambda folder: torch.zeros(3, 4, 0), r"image 2 cannot .* an array of shape \(3, 4, 0\) has no pixels"),
        (
            lambda folder: np.zeros((2, 5, 5, 3)),
            r"image 2 cannot .* an array of shape \(2, 5, 5, 3\) and type float64",
        ),
        (lambda folder: np.zeros((5, 5, 7)), r"image 2 cannot .* an array of shape \(5, 5, 7\) and type float64"),
        (lambda folder: Image.new("RGB", (0, 5)), "image 2 has size 0 x 5; both sides must be at least 1 pixel"),
    ],
    ids=[
        "no file",
        "no path",
        "text file",
        "truncated",
        "folder",
        "empty array",
        "empty tensor",
        "four dimensions",
        "seven channels",
        "empty picture",
    ],
)
def test_a_picture_that_cannot_be_read_is_named_with_its_reason(make, message, tmp_path, image_processor):
    bad = make(tmp_path)
    for images in ([parity.picture(TINY), bad], [[parity.picture(TINY), bad]]):
        with pytest.raises(ValueError, match=message):
            image_processor(images)


@pytest.mark.parametrize("bad", [17, 2.5, {"path": "x.jpg"}, b"bytes", None])
def test_a_picture_of_a_wrong_type_is_refused_by_its_type(bad, image_processor):
    with pytest.raises(TypeError, match=f"not {type(bad).__name__}"):
        image_processor([parity.picture(TINY), bad])


def test_a_picture_above_the_limit_is_refused_with_the_way_out(image_processor):
    picture = Image.new("1", (300, 200))
    message = "image 1 has 300 x 200 = 60000 pixels, more than max_image_pixels=59999; pass max_image_pixels=60000"
    with pytest.raises(ValueError, match=re.escape(message)):
        image_processor(picture, max_image_pixels=59_999)
    assert image_processor(picture, max_image_pixels=60_000).image_sizes == [(200, 300)]


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, image_processor, monkeypatch):
    Image.new("1", (4000, 1000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match=r"bomb.png\) is too large .*MAX_IMAGE_PIXELS and max_image_pixels \(now"):
        image_processor(tmp_path / "bomb.png")


def test_the_limit_is_checked_on_the_header_alone(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    header = (tmp_path / "whole.png").read_bytes()[:60]
    (tmp_path / "header.png").write_bytes(header)
    with pytest.raises(ValueError, match="more than max_image_pixels=10"):
        open_picture(tmp_path / "header.png", "image", 10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_video_frames": 0}, "max_video_frames=0 of the image processor must be a whole number of at least 1"),
        ({"newline_position": "row"}, "newline_position='row' of the image processor must be one of grid, frame"),
        ({"max_video_frame": 4}, "a video takes no 'max_video_frame'; did you mean 'max_video_frames'\\?"),
        ({"size": {"height": 0, "width": 0}}, "of the image processor must be a height and a width"),
    ],
)
def test_settings_of_a_video_are_checked_as_those_of_pictures(settings, words, image_processor):
    with pytest.raises((ValueError, TypeError), match=words):
        image_processor.preprocess_video([Image.new("RGB", (4, 4))], **settings)


def test_a_video_takes_a_tile_by_its_side_as_pictures_do(image_processor):
    for size in (112, {"height": 112, "width": 112}):
        got = image_processor.preprocess_video([Image.new("RGB", (4, 4))], size=size)
        assert got.pixel_values_videos.shape == (1, 3, 112, 112)
        assert got.num_video_tokens == [4 * 5]  # 8 patches a side, pooled to 4, and a newline for every row


@pytest.mark.parametrize("images", [[], [[]], [[], []]])
def test_no_pictures_are_refused_as_such(images, image_processor):
    with pytest.raises(ValueError, match="there are no pictures; give at least one"):
        image_processor(images)


def test_bad_video_frames_are_named(tmp_path, image_processor):
    with pytest.raises(ValueError, match="video 3 has no frames"):
        image_processor.preprocess_video([], "video 3")
    with pytest.raises(ValueError, match=r"video, frame 1 \(gone.jpg\) cannot be read"):
        image_processor.preprocess_video([Image.new("RGB", (4, 4)), "gone.jpg"])


@pytest.mark.parametrize(
    ("name", "value"), [("do_resize", False), ("do_convert_rgb", False), ("do_center_crop", True), ("do_pad", True)]
)
def test_steps_that_tiling_cannot_skip_are_refused(name, value, image_processor):
    with pytest.raises(ValueError, match=f"{name}={value} is not supported"):
        image_processor(parity.picture(TINY), crop_size={"height": 8, "width": 8}, **{name: value})


def test_a_tile_must_be_square(image_processor):
    with pytest.raises(ValueError, match="size=100 x 200: a tile is a square"):
        image_processor(parity.picture(TINY), size={"height": 100, "width": 200})


# Threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing_and_keep_the_order(image_processor, two_threads):
    pictures = [Image.effect_noise((90 + 70 * number, 120), 50 + number).convert("RGB") for number in range(5)]
    together = image_processor([[picture] for picture in pictures], return_tensors="pt")
    alone = [image_processor(picture, return_tensors="pt") for picture in pictures]
    assert torch.equal(together.pixel_values, torch.cat([each.pixel_values for each in alone]))
    assert together.image_sizes.tolist() == [[120, picture.width] for picture in pictures]
    assert together.image_tile_counts.tolist() == [len(each.pixel_values) for each in alone]
    frames = image_processor.preprocess_video(pictures, return_tensors="pt").pixel_values_videos
    fourth = image_processor.preprocess_video(pictures[3:4], return_tensors="pt").pixel_values_videos
    assert torch.equal(frames[3:4], fourth)


def test_several_pictures_are_worked_on_at_once(image_processor, two_threads, monkeypatch):
    names = set()
    meeting = threading.Barrier(2, timeout=30)

    def square(picture, geometry, resample):
        meeting.wait()  # for the other one
        names.add(threading.current_thread().name)
        return np.zeros((1, 3, 384, 384), np.uint8)

    monkeypatch.setattr(image_processor, "_square", square)
    image_processor([[Image.new("RGB", (9, 9))] * 2], return_tensors="pt")
    assert len(names) == 2


def test_a_frame_that_cannot_be_read_is_named_from_any_thread(image_processor, two_threads):
    frames = [Image.new("RGB", (9, 9)), Image.new("RGB", (9, 9)), np.zeros((0, 3, 3), np.uint8)]
    with pytest.raises(ValueError, match="video, frame 2"):
        image_processor.preprocess_video(frames)
