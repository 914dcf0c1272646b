"""The table and the plot of speed say what the result file says."""

import bench_figures
from PIL import Image


def made_up(device="cpu"):
    """An arm that is four times as fast as the official loop, and time that grows by halves."""

    def timing(arm, median, sizes, flops):
        sizes = {"layers": 8, "hidden": 512, "prompt": 464, "answer": 16} | sizes
        passes = {"forwards": 16, "whole_forwards": 4}
        return {
            "arm": arm,
            **passes,
            "median": median,
            "flops": flops,
            "tokens_per_second": 16 / median,
            "sizes": sizes,
        }

    steps, arms = range(4), ("parallel", "balanced", "fast")
    growth = {
        name: [timing(arm, 1.5**step, {name: 2**step}, 2.0**step) for step in steps for arm in arms]
        for name in bench_figures.AXES
    }
    return {
        "command": "lladav bench --growth", "rounds": 5, "growth": growth,
        "machine": {"device": device, "threads": 2, "load": [2.04, 1.0, 1.0]},
        "arms": [{"name": "official", "description": "as it is"}, {"name": "exact", "description": "ours"}],
        "timings": [timing("official", 8.0, {}, 1.0), timing("exact", 2.0, {}, 1.0)],
    }  # fmt: skip


def test_on_a_cpu_the_table_has_ratios_and_no_times():
    head, _, first, second, _, note = bench_figures.bench_table(made_up()).splitlines()
    assert head == "|  |  | passes | whole | times as fast |"
    assert first == "| `official` | as it is | 16 | 4 | 1.0 |"
    assert second == "| `exact` | ours | 16 | 4 | 4.0 |"
    assert "464 tokens of prompt and 16 of answer; medians of 5 rounds in turns on 2 CPU threads, load 2.0." in note


def test_a_load_that_was_not_told_is_left_out():
    document = made_up()
    document["machine"]["load"] = None
    assert "in turns on 2 CPU threads. " in bench_figures.bench_table(document)


def test_on_a_gpu_it_has_speeds_as_well():
    head, _, first, second, _, note = bench_figures.bench_table(made_up("NVIDIA H200")).splitlines()
    assert head.count("|") == first.count("|") == 7
    assert "| 2.0 |" in first
    assert "| 8.0 |" in second
    assert "on NVIDIA H200." in note


def test_the_plot_is_drawn_and_marked(tmp_path):
    bench_figures.draw_bench(made_up(), tmp_path / "bench.png", "mark")
    with Image.open(tmp_path / "bench.png") as plot:
        assert plot.info["Description"] == "mark"
        assert plot.size == (1725, 570)
