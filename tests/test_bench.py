"""Timing of arms in turns: what is counted and worked out, never how long it takes."""

from dataclasses import replace

import pytest
import torch

from transformers_lladav.bench import ARMS, LLADA_V_8B, SMALL, Bench, Sizes, Timing, find_arm, growth_sizes

TINY = Sizes(hidden=32, layers=2, heads=4, feed_forward=48, vocabulary=96, prompt=20, answer=8, tail=3)


@pytest.fixture(scope="module")
def bench():
    return Bench("cpu", torch.float32, TINY)


def test_arithmetic_is_that_of_the_published_shapes():
    """6.98 B parameters in the layers, 0.52 B in the head; 66 TFLOP for a pass with logits everywhere."""
    assert LLADA_V_8B.layers * LLADA_V_8B.layer_parameters == pytest.approx(6.98e9, rel=2e-3)
    length = LLADA_V_8B.prompt + LLADA_V_8B.answer
    assert length == 3888
    everything = LLADA_V_8B.pass_flops(length, length, length)
    assert everything == pytest.approx(66e12, rel=0.01)
    assert everything - LLADA_V_8B.pass_flops(length, length, 128) == pytest.approx((4.0 + 0.026 * 62) * 1e12, rel=0.1)
    assert LLADA_V_8B.pass_flops(128, length, 128) == pytest.approx(2.2e12, rel=0.1)
    assert replace(LLADA_V_8B, batch=8).pass_flops(128, length, 128) == pytest.approx(17.4e12, rel=0.1)


def test_small_sizes_have_the_proportions_of_the_large():
    for sizes in (SMALL, LLADA_V_8B):
        head = sizes.hidden * sizes.vocabulary / (sizes.layers * sizes.layer_parameters)
        assert head == pytest.approx(0.074, abs=0.002)
        assert sizes.prompt / sizes.answer == pytest.approx(29.2, abs=0.3)
        assert sizes.tail / sizes.prompt == pytest.approx(0.017, abs=0.001)
        linear = 2 * sizes.layer_parameters
        attention = 4 * (sizes.prompt + sizes.answer) * sizes.hidden
        assert attention / linear == pytest.approx(0.145, abs=0.005)


@pytest.mark.parametrize(
    ("name", "forwards", "whole"),
    [("official", 8, 8), ("exact", 8, 8), ("parallel", 2, 2), ("balanced", 2, 1), ("fast", 2, 1),
     ("autoregressive", 8, 1)],
)  # fmt: skip
def test_passes_of_an_arm_are_counted(name, forwards, whole, bench):
    [timing] = bench.measure([find_arm(name)], [TINY], rounds=1)
    assert (timing.arm, timing.forwards, timing.whole_forwards) == (name, forwards, whole)
    assert len(timing.seconds) == 1
    assert timing.peak_memory is None


def test_arms_take_turns_and_the_first_round_does_not_count(bench, monkeypatch):
    order, told = [], []
    run = bench.run
    monkeypatch.setattr(bench, "run", lambda arm, sizes: order.append((arm.name, sizes.answer)) or run(arm, sizes))
    arms = [find_arm("exact"), find_arm("fast")]
    sizes = [TINY, replace(TINY, answer=4)]
    timings = bench.measure(arms, sizes, rounds=2, on_progress=lambda *each: told.append(each))
    turn = [("exact", 8), ("fast", 8), ("exact", 4), ("fast", 4)]
    assert order == turn * 3
    assert told[-1] == (12, 12)
    assert [(timing.arm, timing.sizes.answer) for timing in timings] == turn
    assert [len(timing.seconds) for timing in timings] == [2] * 4


def test_nothing_ends_an_answer_early(bench):
    """All arms write as many tokens, so that times can be compared."""
    for arm in ARMS:
        if arm.gpu_only:
            continue  # compiling takes half a minute and changes no token, as test_static_loop_lladav shows
        _, output = bench.run(arm, replace(TINY, batch=3))
        rows = output.answers if arm.kind == "ours" else output
        assert [len(row) for row in rows] == [8] * 3


def test_arms_write_what_the_official_loop_writes(bench):
    _, official = bench.run(find_arm("official"), TINY)
    _, exact = bench.run(find_arm("exact"), TINY)
    assert official[0].tolist() == exact.answers[0].tolist()


def test_arithmetic_of_an_answer(bench):
    """Two steps of the fast arm: one over everything, one over the answer and the end of the prompt."""
    [timing] = bench.measure([find_arm("fast")], [TINY], rounds=1)
    assert timing.flops == TINY.pass_flops(28, 28, 8) + TINY.pass_flops(11, 28, 8)
    [official] = bench.measure([find_arm("official")], [TINY], rounds=1)
    assert official.flops == 8 * TINY.pass_flops(28, 28, 28)


def test_speed_is_of_the_median_and_of_all_answers():
    timing = Timing("exact", replace(TINY, batch=4), seconds=[1.0, 9.0, 2.0])
    assert timing.median == 2.0
    assert timing.tokens_per_second == 4 * 8 / 2


def test_one_thing_grows_at_a_time():
    grown = growth_sizes(TINY)
    assert [sizes.answer for sizes in grown["answer"]] == [4, 8, 16, 32, 64]
    assert [sizes.prompt for sizes in grown["prompt"]] == [10, 20, 40, 80, 160]
    assert [sizes.batch for sizes in grown["batch"]] == [1, 2, 4, 8, 16, 32]
    for name, each in grown.items():
        assert {replace(sizes, **{name: getattr(TINY, name)}) for sizes in each} == {TINY}


def test_the_prompt_is_run_as_often_as_the_arms_say():
    """In every second step, and once."""
    assert [find_arm(name).settings["prompt_refresh_interval"] for name in ("balanced", "fast")] == [2, None]


def test_an_unknown_arm():
    with pytest.raises(ValueError, match="there is no arm 'fats'; choose among official, exact, parallel, balanced"):
        find_arm("fats")
