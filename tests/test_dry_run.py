"""A dry run: a step on the longest samples, figures that can be derived, and nothing written."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("peft")

from training_runs import quick_recipe, settings_of, write_data
from transformers_lladav.dry_run import Tried, try_out
from transformers_lladav.recipes import Lora
from transformers_lladav.train import Run
from transformers_lladav.training_memory import estimate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_the_longest_samples_are_tried_and_nothing_is_written(data, tmp_path):
    # A rate so low that the second step, whose loss is told, is like the first.
    recipe = quick_recipe(
        answer_canvas=None, learning_rate=1e-12, device_batch_size=2, global_batch_size=8, lora=Lora(rank=2)
    )
    run = Run(settings_of(data, tmp_path / "run"), recipe)
    longest = sorted(range(16), key=lambda number: -run.data.lengths[number])[:2]
    trainer = run.trainer(output=tmp_path / "other")
    batch = trainer.data_collator([trainer.train_dataset[number] for number in longest])
    assert sorted(batch.pop("sample_numbers").tolist()) == sorted(longest)
    with torch.no_grad():
        loss = float(run.prepared.model.eval()(**batch).loss)
    before = sorted(path.name for path in tmp_path.iterdir())
    tried = try_out(run)
    assert tried.loss == pytest.approx(loss, rel=1e-5)
    assert tried.tokens == max(run.data.lengths)
    assert tried.total_seconds == pytest.approx(tried.batch_seconds * 4 * 4)  # batches of a step, steps of two epochs
    assert tried.peak_bytes is None
    assert len(batch["pixel_values"]) == 2  # a tile each
    config = run.prepared.bare.config
    assert tried.computed_bytes == estimate(config, recipe, tried.tokens, 1, precision="fp32").total
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not (tmp_path / "run").exists()


def test_memory_is_that_of_the_rows_that_are_packed(data, tmp_path):
    """Four samples in a row are a row, and not four of its length."""
    recipe = quick_recipe(packing=True, answer_canvas=None, max_length=1000)
    run = Run(settings_of(data, tmp_path / "run"), recipe)
    longest = sorted(run.data.lengths, reverse=True)[:4]
    tried = try_out(run)
    assert tried.tokens == sum(longest)
    row = replace(recipe, device_batch_size=1, global_batch_size=1)
    expected = estimate(run.prepared.bare.config, row, sum(longest), 4, precision="fp32")
    assert tried.computed_bytes == expected.total


def test_a_stream_is_tried_on_its_first_samples(data, tmp_path):
    recipe = quick_recipe(max_steps=3)
    run = Run(settings_of(data, tmp_path / "run", stream=True, shuffle_buffer=0), recipe)
    first = next(iter(run.trainer(output=tmp_path / "other").get_train_dataloader()))
    assert try_out(run).tokens == first["input_ids"].shape[1]
    assert not (tmp_path / "run").exists()


def test_findings_in_words():
    tried = Tried(
        loss=1.23456,
        tokens=4100,
        batch_seconds=0.5,
        total_seconds=3000.0,
        peak_bytes=None,
        computed_bytes=15_400_000_000,
    )
    first, memory, seconds, last = tried.lines()
    assert first == "One step on the longest samples (4,100 tokens) works: loss 1.2346, 0.50 s a batch."
    assert memory == "Memory: 15.40 GB by arithmetic, of one device."
    assert seconds.startswith("Time: 50.0 minutes for all steps")
    assert last == "Nothing was written."
    on_gpu = replace(tried, peak_bytes=14_000_000_000, total_seconds=36_000.0)
    assert "14.00 GB were allocated at most; 15.40 GB by arithmetic" in on_gpu.lines()[1]
    assert "10.0 hours" in on_gpu.lines()[2]
