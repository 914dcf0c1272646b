"""Bar charts: heights in pixels, how often counts, values and colours are drawn, and which charts are held out."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from transformers_lladav.charts import LEFT, MAX_VALUE, RIGHT, UNIT, Chart, make_chart, render_chart
from transformers_lladav.shape_scenes import COLOURS
from transformers_lladav.splits import SPLIT_SEEDS, is_held_out

COUNT = 1500
CHARTS = {split: [make_chart(split, index) for index in range(COUNT)] for split in ("train", "test", "demo")}
SIDE = 96
PAPER, AXIS = (252, 252, 252), (40, 42, 46)


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of True begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def test_contents_of_other_splits_never_occur_in_training() -> None:
    assert not any(is_held_out(chart.layout) for chart in CHARTS["train"])
    for split in SPLIT_SEEDS:
        if split != "train":
            assert all(is_held_out(make_chart(split, index).layout) for index in range(200))


def test_counts_values_and_colours_are_uniform_in_training() -> None:
    counts = Counter(len(chart.values) for chart in CHARTS["train"])
    assert set(counts) == {2, 3, 4, 5}
    assert all(abs(number - COUNT / 4) < 4 * math.sqrt(COUNT * 3 / 16) for number in counts.values())
    values = Counter(value for chart in CHARTS["train"] for value in chart.values)
    drawn = values.total()
    assert set(values) == set(range(1, 10))
    assert all(abs(number - drawn / 9) < 4 * math.sqrt(drawn * 8) / 9 for number in values.values())
    assert all(len(set(chart.colours)) == len(chart.values) for chart in CHARTS["train"])
    assert {colour for chart in CHARTS["train"] for colour in chart.colours} == set(COLOURS)


def test_the_layout_reads_from_left_to_right() -> None:
    chart = Chart(PAPER, ("red", "blue"), (3, 7), 0.94, 0.7)
    assert chart.layout == "red 3, blue 7"
    assert chart.centres() == pytest.approx([LEFT + 0.22, LEFT + 0.66])


def test_the_highest_bar_and_the_axis_fit_into_the_picture() -> None:
    for chart in itertools.chain(*CHARTS.values()):
        assert chart.floor - (MAX_VALUE + 0.5) * UNIT > 0
        assert chart.floor < 1
        assert len(chart.centres()) == len(chart.values)
        assert RIGHT < 1


def test_bars_are_as_high_as_their_values_and_stand_where_they_should() -> None:
    for chart in [chart for charts in CHARTS.values() for chart in charts[:25]]:
        picture = np.asarray(render_chart(chart, SIDE)).astype(int)
        half = chart.fill * (RIGHT - LEFT) / len(chart.values) / 2
        for colour, value, centre in zip(chart.colours, chart.values, chart.centres(), strict=True):
            filled = (picture == COLOURS[colour]).all(axis=2)
            ((top, bottom),) = runs(filled[:, int(centre * SIDE)])
            # The axis covers about two pixels at the foot.
            assert bottom == pytest.approx(chart.floor * SIDE, abs=1.5)
            assert top == pytest.approx((chart.floor - value * UNIT) * SIDE, abs=1)
            assert bottom - top == pytest.approx(value * UNIT * SIDE, abs=2)
            ((left, right),) = runs(filled[(top + bottom) // 2])
            assert (left, right) == pytest.approx(((centre - half) * SIDE, (centre + half) * SIDE), abs=1)


def test_lines_lie_at_whole_values() -> None:
    chart = Chart(PAPER, ("red", "blue"), (9, 1), 0.94, 0.6)
    picture = np.asarray(render_chart(chart, 3 * SIDE)).astype(int)
    gap = picture[:, int((sum(chart.centres()) / 2) * 3 * SIDE)]
    dark = runs(gap.sum(axis=1) < sum(PAPER) - 30)
    middles = [(top + bottom) / 2 for top, bottom in dark]
    assert middles == pytest.approx([(chart.floor - value * UNIT) * 3 * SIDE for value in range(9, -1, -1)], abs=1)


def test_the_same_number_gives_the_same_chart() -> None:
    assert make_chart("test", 3) == make_chart("test", 3) != make_chart("test", 4)
    with pytest.raises(ValueError, match="split='dev'"):
        make_chart("dev", 0)
