"""The measurement behind the README's conversion figures: its arithmetic, and that it sees memory."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "model_cards" / "measure_conversion.py"
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure_conversion", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure_conversion"] = module
    spec.loader.exec_module(module)
    return module


def parameters(layers):
    """LLaDA-V's, counted by hand from its sizes."""
    width, inner, vision, vision_inner = 4096, 12288, 1152, 4304
    text = 2 * 126464 * width + width + layers * (4 * width**2 + 3 * width * inner + 2 * width)
    block = 4 * (vision**2 + vision) + 2 * vision * vision_inner + vision_inner + vision + 4 * vision
    tower = 3 * 14 * 14 * vision + vision + 729 * vision + 26 * block + 2 * vision
    projector = vision * width + width + width**2 + width
    return text + tower + projector + width


@pytest.mark.parametrize("layers", [1, 32])
def test_the_shapes_are_those_of_the_release(measure, layers):
    shapes = measure.official_shapes(layers)
    assert measure.total_bytes(shapes) == 2 * parameters(layers)
    assert shapes["model.mm_projector.0.weight"] == (4096, 1152)
    assert f"model.layers.{layers - 1}.mlp.gate_proj.weight" in shapes
    assert f"model.layers.{layers}.mlp.gate_proj.weight" not in shapes


def test_the_extrapolation_keeps_memory_and_scales_time(measure):
    runs = [{"seconds": seconds, "peak_bytes": seconds, "peak_anonymous_bytes": 1.0} for seconds in (3.0, 7.0, 4.0)]
    document = measure._document(4, runs, [1.0, 9.0, 2.0])
    measured, whole = document["measured"], document["extrapolated"]
    assert (measured["seconds"], measured["peak_bytes"], measured["plain_copy_seconds"]) == (4.0, 7.0, 2.0)
    assert whole["checkpoint_bytes"] == 2 * parameters(32)
    assert whole["seconds"] == pytest.approx(4.0 * parameters(32) / parameters(4))
    more = whole["largest_output_file_bytes"] - measured["largest_output_file_bytes"]
    assert whole["peak_bytes"] == 7 + more
    assert whole["largest_output_file_bytes"] <= 2000 * MEGABYTE


def test_memory_is_that_of_the_process_alone(measure):
    here = bytearray(300 * MEGABYTE)
    code = "import time; x = bytearray(100_000_000); x[::4096] = b'1' * len(x[::4096]); time.sleep(0.5)"
    found = measure.run_measured([sys.executable, "-c", code])
    assert 100 * MEGABYTE <= found["peak_anonymous_bytes"] <= found["peak_bytes"] < 200 * MEGABYTE
    assert found["seconds"] >= 0.5
    assert len(here) == 300 * MEGABYTE


def test_a_command_that_fails_is_no_measurement(measure):
    with pytest.raises(RuntimeError, match="failed with exit code 3"):
        measure.run_measured([sys.executable, "-c", "raise SystemExit(3)"])
