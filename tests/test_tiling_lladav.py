"""Tiles, features and tokens of a picture of any size are the official ones, and stay within their limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import parity
from transformers_lladav.tiling_lladav import (
    DEFAULT_PINPOINTS,
    best_resolution,
    fitted_size,
    tile_layout,
    video_frame_side,
    video_token_count,
)

SIZES = st.tuples(st.integers(1, 6000), st.integers(1, 6000))


def layout(height: int, width: int, max_tiles: int = 4):
    return tile_layout((height, width), DEFAULT_PINPOINTS, 384, 27, max_tiles)


def test_all_247_sizes_have_the_official_tiles_features_and_counts(parity_report):
    table = parity.numbers("grid_table")
    assert len(table["rows"]) == 247
    ours = []
    for width, height, *_ in table["rows"]:
        got = layout(height, width)
        tokens = 729 + got.num_grid_tokens
        ours.append([width, height, got.tiles[1], got.tiles[0], *got.unpadded, *got.grid, tokens])
    parity_report.same("tiling: 247 picture sizes", "grid_table", ours, table["rows"])


@pytest.mark.parametrize("name", parity.PICTURES)
def test_the_test_pictures_have_the_official_layout(name, parity_report):
    entry = parity.numbers("preprocess")["images"][name]
    width, height = entry["size_wh"]
    expected = entry["variants"]["rgb"]
    got = layout(height, width)
    ours = [
        list(best_resolution((height, width), DEFAULT_PINPOINTS)),
        list(got.tiles),
        got.num_tiles,
        list(got.unpadded),
        list(got.grid),
        got.grid != got.unpadded,
        729 + got.num_grid_tokens,
    ]
    theirs = [
        expected["best_resolution_wh"][::-1],
        expected["grid_wh"][::-1],
        expected["n_tiles_with_base"],
        expected["unpadded_feature_hw"],
        expected["final_feature_hw"],
        expected["interpolated"],
        expected["total_image_tokens"],
    ]
    parity_report.same("tiling: pictures", name, ours, theirs)


@pytest.mark.parametrize("position", ["grid", "frame", "one_token", "no_token"])
def test_a_video_has_the_official_number_of_tokens(position, parity_report):
    video = parity.numbers("preprocess")["video"]
    ours = video_token_count(video["n_frames"], 27, position)
    parity_report.same("tiling: video tokens", position, [ours], [video["token_counts"][position]])
    assert [video_frame_side(27)] * 2 == video["pooled_hw"]


@pytest.mark.parametrize(("patches", "pooled"), [(1, 1), (2, 1), (3, 2), (26, 13), (27, 14)])
def test_pooling_halves_the_side_of_a_frame_and_rounds_up(patches, pooled):
    assert video_frame_side(patches) == pooled


def test_among_equally_good_canvases_the_earlier_one_wins():
    assert best_resolution((100, 100), [[384, 768], [768, 384]]) == (384, 768)
    assert best_resolution((100, 100), [[768, 384], [384, 768]]) == (768, 384)


def test_the_smaller_canvas_wins_when_neither_loses_pixels():
    assert best_resolution((100, 100), [[768, 768], [384, 384]]) == (384, 384)


def test_a_map_is_shrunk_only_when_it_exceeds_the_limit_by_a_fifth_of_its_area():
    # sqrt(54 * 54 / (4 * 27 * 27)) is 1; sqrt(9 / 4) is 1.5, and 81 // 1.5 is 54.
    assert layout(768, 768).grid == (54, 54)
    assert layout(1152, 1152).grid == (54, 54)
    assert layout(1152, 1152, max_tiles=9).grid == (81, 81)


@given(SIZES)
def test_a_fitted_picture_touches_the_canvas_and_stays_inside(size):
    canvas = best_resolution(size, DEFAULT_PINPOINTS)
    height, width = fitted_size(size, canvas)
    assert 1 <= height <= canvas[0]
    assert 1 <= width <= canvas[1]
    assert height == canvas[0] or width == canvas[1]


@given(SIZES, st.integers(1, 9))
def test_kept_features_lie_in_the_map_and_stay_near_the_limit(size, max_tiles):
    got = layout(*size, max_tiles=max_tiles)
    rows, columns = got.unpadded
    assert 1 <= rows <= got.tiles[0] * 27
    assert 1 <= columns <= got.tiles[1] * 27
    assert rows == got.tiles[0] * 27 or columns == got.tiles[1] * 27
    assert got.grid[0] * got.grid[1] <= 1.1**2 * max_tiles * 27**2
    assert got.num_grid_tokens == got.grid[0] * got.grid[1] + got.grid[0]
    assert got.num_tiles == got.tiles[0] * got.tiles[1] + 1
