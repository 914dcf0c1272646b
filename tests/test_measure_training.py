"""The measurement of training steps: the plain way is the same training, memory is really counted."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from transformers_lladav.recipes import RECIPES

PATH = Path(__file__).parent.parent / "model_cards" / "measure_training.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure_training", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure_training"] = module
    spec.loader.exec_module(module)
    return module


def test_both_ways_are_the_same_training(measure):
    """One loss and one gradient, in float32 and to its rounding."""
    model = measure.LladaVForMaskedDiffusion(measure.small_config())
    sample = measure.make_sample(model.config, 48, 1, CPU)
    found = []
    for loss_of in (measure.own_loss, measure.plain_loss):
        model.zero_grad()
        loss = loss_of(model, sample)
        loss.backward()
        found.append((loss.item(), model.model.language_model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_a_sample_is_pictures_then_text_of_which_half_is_hidden(measure):
    config = measure.small_config()
    sample = measure.make_sample(config, 1000, 2, CPU)
    ids, labels = sample["input_ids"][0], sample["labels"][0]
    assert (ids == config.image_token_id).nonzero().flatten().tolist() == list(range(2 * (16 + 1)))
    assert torch.equal(ids == config.mask_token_id, labels != -100)
    share = (labels != -100).sum() / (1000 - 34)
    assert share.item() == pytest.approx(0.5, abs=0.05)
    assert sample["loss_weights"].sum().item() == pytest.approx(share.item() / 0.5, rel=1e-5)
    with pytest.raises(ValueError, match="2 pictures have 34 tokens, which leaves no text in 34"):
        measure.make_sample(config, 34, 2, CPU)


def test_live_memory_is_what_is_alive_at_a_time(measure):
    known = torch.ones(1000)
    with measure.LiveMemory([known]) as memory:
        kept = known + 1  # 4,000 bytes that stay
        for _ in range(3):
            torch.empty(500)  # 2,000 that go at once
        view = kept[:10]
        known.view(10, 100)
    assert memory.peak == 6000
    assert memory.live == 4000
    del kept, view
    assert memory.live == 0


def test_the_small_run_compares_both_ways_and_reports_what_it_left_out(measure, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "MEASURED", ("lora",))
    monkeypatch.setattr(measure, "SMALL_LENGTHS", {96: 2})
    monkeypatch.setattr(measure, "WARMUP_STEPS", 1)
    output = tmp_path / "speed.json"
    measure.main(["--small", "--repeats", "1", "--output", str(output)])
    document = json.loads(output.read_text())
    arms = {(row["checkpointing"], row["plain"]): row for row in document["arms"]}
    assert len(arms) == 4
    assert not any(row["out_of_memory"] for row in arms.values())
    assert all(row["seconds"] > 0 for row in arms.values())
    for checkpointing in (True, False):
        plain, ours = arms[checkpointing, True], arms[checkpointing, False]
        # Log-probabilities and logits of 96 positions against those of the hidden half of 62.
        assert plain["peak_bytes"] - ours["peak_bytes"] > 4 * 4096 * (96 - 40)
        assert plain["loss"] == pytest.approx(ours["loss"], rel=0.05)
    assert arms[True, False]["peak_bytes"] < arms[False, False]["peak_bytes"]
    assert [pair["checkpointing"] for pair in document["plain_over_ours"]] == [True, False]
    assert document["command"].endswith("--small --repeats 1")


def test_what_cannot_run_is_named(measure, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "find_spec", lambda name: None)
    monkeypatch.setattr(measure, "MEASURED", ("qlora",))
    document = measure.measure(measure.small_config(), {96: 2}, CPU, 1, tmp_path)
    assert document["left_out"] == {"qlora": "bitsandbytes is not installed"}
    assert document["arms"] == []


def test_four_bit_weights_are_measured_as_such(measure, tmp_path):
    pytest.importorskip("bitsandbytes", reason="four-bit weights need bitsandbytes")
    bench = measure.Bench(measure.small_config(), RECIPES["qlora"], CPU, tmp_path)
    stored = {parameter.dtype for name, parameter in bench.model.named_parameters() if "up_proj.base_layer" in name}
    assert stored == {torch.uint8}
    assert bench.step(measure.Arm(96, 2, False, False)) > 0


def test_an_arm_that_runs_out_of_memory_is_a_result_and_has_no_ratio(measure, tmp_path):
    bench = measure.Bench(measure.small_config(), RECIPES["lora"], CPU, tmp_path)
    step = bench.step

    def step_in_little_memory(arm):
        if arm.plain:
            raise torch.cuda.OutOfMemoryError
        return step(arm)

    bench.step = step_in_little_memory
    arms = [measure.Arm(48, 1, False, plain) for plain in (False, True)]
    ours, plain = measure.measure_recipe(bench, arms, 1)
    assert (ours["out_of_memory"], plain["out_of_memory"]) == (False, True)
    assert "seconds" not in plain
    assert measure.ratios([ours, plain]) == []


def test_ratios_are_of_pairs(measure):
    row = {"recipe": "lora", "tokens": 96, "checkpointing": True, "out_of_memory": False}
    ours = row | {"plain": False, "seconds": 2.0, "peak_bytes": 100}
    plain = row | {"plain": True, "seconds": 3.0, "peak_bytes": 250}
    other = plain | {"tokens": 192, "seconds": 8.0}
    pairs = measure.ratios([plain, other, ours, ours | {"tokens": 192}])
    assert [(pair["tokens"], pair["seconds"], pair["peak_bytes"]) for pair in pairs] == [
        (96, 1.5, 2.5),
        (192, 4.0, 2.5),
    ]


def test_the_small_run_is_no_result_for_the_readme(measure, capsys):
    with pytest.raises(SystemExit):
        measure.main(["--small"])
    assert "--output" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_error_names_the_ways_out(measure, capsys):
    with pytest.raises(SystemExit):
        measure.main([])
    assert "--small" in capsys.readouterr().err


def test_the_committed_estimate_is_what_the_arithmetic_gives(measure):
    document = json.loads((measure.RESULTS / "training_memory.json").read_text())
    row = next(row for row in document["rows"] if (row["recipe"], row["tokens"]) == ("qlora", 4096))
    fresh = measure.fits(measure.LladaVConfig(), RECIPES["qlora"])
    assert row == json.loads(json.dumps(dataclasses.asdict(next(one for one in fresh if one.tokens == 4096))))
    assert {row["recipe"] for row in document["rows"]} == set(measure.ESTIMATED)
    assert document["computed_not_measured"] is True
