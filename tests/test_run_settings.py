"""How steps are counted, what a run's record says, and that every field of a recipe reaches what it decides."""

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from transformers import EarlyStoppingCallback

pytest.importorskip("peft")

from training_runs import quick_recipe, settings_of, write_data
from transformers_lladav.batches import TrainingBatches
from transformers_lladav.recipes import LANGUAGE_LAYERS, RECIPES, Lora, Recipe
from transformers_lladav.run_settings import (
    CHECKPOINTS,
    Schedule,
    begin_or_continue,
    finish_record,
    is_finished,
    training_arguments,
)
from transformers_lladav.samples import Numbered
from transformers_lladav.train import Run
from transformers_lladav.trainable import trained_names

RECIPE = RECIPES["lora"]
FACTS = {"samples": 16, "held_out": 0, "left_out": 0, "cut": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


# Steps


@pytest.mark.parametrize(
    ("changes", "samples", "devices", "steps", "accumulation"),
    [
        ({"epochs": 1.0, "global_batch_size": 16, "device_batch_size": 1}, 160, 1, 10, 16),
        ({"epochs": 1.0, "global_batch_size": 16, "device_batch_size": 2}, 161, 4, 11, 2),
        ({"epochs": 2.5, "global_batch_size": 8, "device_batch_size": 8}, 17, 1, 8, 1),  # 3 an epoch, 7.5 in all
        ({"epochs": 1.1, "global_batch_size": 8, "device_batch_size": 8}, 400, 1, 55, 1),  # of 55.00000000000001
        ({"max_steps": 7, "epochs": 3.0, "global_batch_size": 8}, 17, 1, 7, 8),
        ({"max_steps": 7, "global_batch_size": 8}, None, 8, 7, 1),
    ],
)
def test_steps(changes, samples, devices, steps, accumulation):
    schedule = Schedule.of(replace(RECIPE, **changes), samples, devices)
    assert (schedule.steps, schedule.accumulation, schedule.devices) == (steps, accumulation, devices)


@pytest.mark.parametrize(
    ("steps", "checkpoints", "logs"), [(1, 1, 1), (95, 10, 1), (401, 41, 3), (100_000, 10_000, 10)]
)
def test_ten_checkpoints_and_figures_at_least_every_ten_steps(steps, checkpoints, logs):
    schedule = Schedule.of(replace(RECIPE, max_steps=steps), 16, 1)
    assert (schedule.checkpoint_every, schedule.log_every) == (checkpoints, logs)


@pytest.mark.parametrize(
    ("devices", "fitting"), [(3, 15), (32, 32)], ids=["no multiple", "more devices than samples of a step"]
)
def test_batches_that_do_not_fit_the_devices(devices, fitting):
    with pytest.raises(ValueError, match=rf"=1 times {devices} devices; pass --set global_batch_size={fitting}$"):
        Schedule.of(RECIPE, 160, devices)


def test_a_stream_needs_a_number_of_steps():
    with pytest.raises(ValueError, match="a stream does not say how long it is; pass --set max_steps="):
        Schedule.of(RECIPE, None, 1)


@pytest.mark.parametrize(("ratio", "steps", "warmup"), [(0.03, 100, 3), (0.03, 101, 4), (0.07, 100, 7), (0.0, 5, 0)])
def test_the_warm_up_is_a_share_of_the_steps_rounded_up(ratio, steps, warmup, tmp_path):
    recipe = replace(RECIPE, warmup_ratio=ratio, max_steps=steps)
    settings, schedule = settings_of(tmp_path, tmp_path / "run"), Schedule.of(recipe, 16, 1)
    assert training_arguments(settings, recipe, schedule, "fp32", evaluates=False).warmup_steps == warmup


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"stream": True}, "because a stream is not split; give --eval-data; leave it out"),
        ({"eval_data": "b.csv"}, "because --eval-data has them; leave it out"),
    ],
)
def test_nothing_is_held_out_of_data_that_are_not_split(options, why, tmp_path):
    with pytest.raises(ValueError, match=f"^--hold-out 0.1: no samples are held out, {why}$"):
        settings_of(tmp_path / "a.csv", tmp_path / "run", held_out_share=0.1, **options)
    assert settings_of(tmp_path / "a.csv", tmp_path / "run", held_out_share=0.0, **options)


# The record of a run


def test_a_record_begins_goes_on_and_ends(tmp_path):
    settings = settings_of(tmp_path / "a.csv", tmp_path / "run")
    begun = begin_or_continue(settings, RECIPE, FACTS)
    assert begun["recipe"]["learning_rate"] == RECIPE.learning_rate
    assert begun["samples"] == 16
    assert json.loads((settings.output / "run.json").read_text()) == begun
    assert not is_finished(settings.output)
    assert begin_or_continue(settings, RECIPE, FACTS) == begun
    finish_record(settings.output)
    assert is_finished(settings.output)
    assert begin_or_continue(settings, RECIPE, FACTS) == {**begun, "finished": True}


@pytest.mark.parametrize(
    ("options", "recipe", "facts", "difference"),
    [
        ({}, replace(RECIPE, seed=1), FACTS, "recipe.seed was 0 and is 1"),
        ({}, replace(RECIPE, lora=Lora(rank=4)), FACTS, "recipe.lora.rank was 16 and is 4"),
        ({}, RECIPES["full"], FACTS, "recipe.name was"),
        ({}, RECIPE, {**FACTS, "samples": 17}, "samples was 16 and is 17"),
        ({"eval_data": "b.csv"}, RECIPE, FACTS, 'eval_data was null and is "b.csv"'),
        ({"question": "Why?"}, RECIPE, FACTS, 'question was null and is "Why?"'),
        ({"stream": True}, RECIPE, FACTS, "shuffle_buffer was null and is 1000"),
    ],
)
def test_differences_are_named(options, recipe, facts, difference, tmp_path):
    settings = settings_of(tmp_path / "a.csv", tmp_path / "run")
    begin_or_continue(settings, RECIPE, FACTS)
    before = (settings.output / "run.json").read_text()
    with pytest.raises(ValueError, match="Repeat the command it was begun with to go on") as caught:
        begin_or_continue(replace(settings, **options), recipe, facts)
    assert difference in str(caught.value)
    assert (settings.output / "run.json").read_text() == before


def test_what_does_not_change_a_run_may_change(tmp_path):
    settings = settings_of(tmp_path / "a.csv", tmp_path / "run")
    begin_or_continue(settings, RECIPE, FACTS)
    begin_or_continue(replace(settings, workers=3, report_to="tensorboard", device="auto"), RECIPE, FACTS)


# What Trainer is told


def rates(run):
    """The learning rates of all steps, by group."""
    trainer = run.trainer()
    trainer.create_optimizer_and_scheduler(run.schedule.steps)
    found = []
    for _ in range(run.schedule.steps):
        found.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


def shape_of(schedule, step, warmup, steps):
    """The share of the peak rate at a step that is counted from 0."""
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)
    return {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_rates_follow_their_formula_and_the_tower_has_its_own(schedule, data, tmp_path):
    recipe = quick_recipe(
        "full", schedule=schedule, warmup_ratio=0.25, max_steps=10, learning_rate=1e-3, vision_learning_rate=1e-4
    )
    run = Run(settings_of(data, tmp_path), recipe)
    peaks = [group["lr"] for group in run.trainer().create_optimizer().param_groups]
    assert sorted(set(peaks)) == [1e-4, 1e-3]
    shape = [shape_of(schedule, step, 3, 10) for step in range(10)]  # a quarter of ten steps, rounded up
    for step, found in enumerate(rates(run)):
        assert found == pytest.approx([peak * shape[step] for peak in peaks]), step


def test_precision_is_not_taken_from_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    settings, schedule = settings_of(tmp_path, tmp_path / "run"), Schedule.of(RECIPE, 16, 1)
    args = training_arguments(settings, RECIPE, schedule, "fp32", evaluates=False)
    assert (args.bf16, args.fp16, args.mixed_precision) == (False, False, "no")
    assert args.output_dir == str(settings.output / CHECKPOINTS)


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


FIRST = "a green circle at the top left, a red triangle at the right and a purple cross at the bottom"
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


# Of the system's and the user's message.
STRUCTURE = "<|startoftext|>" + 2 * "<|start_header_id|><|end_header_id|><|eot_id|>"


def after_picture(trainer):
    """What stands after the first sample's picture, before its question."""
    ids = trainer.data_collator.prepare(trainer.train_dataset[0]).input_ids
    end = int((ids == trainer.processor.image_token_id).nonzero()[-1]) + 1
    return trainer.processor.tokenizer.decode(ids[end : end + 1]).replace("Des", "")


def learnable(trainer):
    """What of the first sample can be hidden."""
    labels = trainer.data_collator.prepare(trainer.train_dataset[0]).labels
    return trainer.processor.tokenizer.decode(labels[labels != -100])


def rows(trainer):
    return first_batch(trainer)["input_ids"].shape[0]


def checkpointed(trainer):
    return any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())


def compiled(trainer):
    return {type(module).__name__ for module in trainer.model.modules() if module._compiled_call_impl is not None}


def adapter(trainer):
    return trainer.model.peft_config["default"]


# Field: another value, what is looked at, what it has to be.
EFFECTS = {
    "trains": (("head",), lambda t: any("lm_head" in name for name in trained_names(t.model)), True),
    "lora": (
        Lora(rank=3, alpha=5.0, dropout=0.2, targets=LANGUAGE_LAYERS.replace("q_proj|", ""), rslora=True, dora=True),
        lambda t: (
            adapter(t).r,
            adapter(t).lora_alpha,
            adapter(t).lora_dropout,
            any("q_proj" in name for name in trained_names(t.model)),
            adapter(t).use_rslora,
            adapter(t).use_dora,
        ),
        (3, 5.0, 0.2, False, True, True),
    ),
    "learning_rate": (3e-4, lambda t: {group["lr"] for group in t.create_optimizer().param_groups}, {3e-4}),
    "vision_learning_rate": (None, lambda t: t.recipe.vision_learning_rate, None),  # by formula above
    "schedule": ("linear", lambda t: t.args.lr_scheduler_type, "linear"),
    "warmup_ratio": (0.5, lambda t: t.args.warmup_steps, 4),
    "weight_decay": (0.1, lambda t: max(g["weight_decay"] for g in t.create_optimizer().param_groups), 0.1),
    "max_grad_norm": (0.5, lambda t: t.args.max_grad_norm, 0.5),
    "epochs": (5.0, lambda t: t.args.max_steps, 20),
    "max_steps": (3, lambda t: t.args.max_steps, 3),
    "global_batch_size": (8, lambda t: (t.args.gradient_accumulation_steps, t.args.max_steps), (2, 4)),
    "device_batch_size": (2, lambda t: (rows(t), t.args.gradient_accumulation_steps), (2, 2)),
    "max_length": (85, lambda t: max(batch["input_ids"].shape[1] for batch in t.get_train_dataloader()), 85),
    "precision": ("bf16", lambda t: (t.args.bf16, t.model.lm_head.weight.dtype), (True, torch.bfloat16)),
    "gradient_checkpointing": (True, checkpointed, True),
    "compile": (True, compiled, {"LladaVDecoderLayer", "SiglipEncoderLayer"}),
    "prompt": ("plain", lambda t: learnable(t), FIRST + "\n"),
    "chat_share": (0.5, lambda t: (t.data_collator.chat_share, t.eval_collator.chat_share), (0.5, 0.5)),
    "image_separator": ("\n", lambda t: after_picture(t), "\n"),
    "answers_only": (False, lambda t: learnable(t), STRUCTURE + HEADER + FIRST + "<|eot_id|>"),
    "answer_canvas": (6, lambda t: learnable(t), FIRST + 4 * "<|eot_id|>"),
    "canvas_turns": ("all", lambda t: t.data_collator.canvas_turns, "all"),
    "block_noise": (8, lambda t: t.data_collator.block_noise, 8),
    "holes": (0.5, lambda t: t.data_collator.holes, 0.5),
    "sparse_noise": (3, lambda t: (t.data_collator.sparse_noise, t.eval_collator.sparse_noise), (3, 3)),
    "train_on_padding": (True, lambda t: filled(t), True),
    "conversation_mask": (True, lambda t: "conversation_ids" in first_batch(t), True),
    "complementary": (True, rows, 8),
    "packing": (True, lambda t: (rows(t), "position_ids" in first_batch(t)), (1, True)),
    "group_by_length": (True, lambda t: widest(t), True),
    "checkpoint_every": (3, lambda t: (t.args.save_steps, t.args.eval_steps), (3, 3)),
    "eval_answers": (2, lambda t: len(t.questions), 2),
    "best_by": (
        "exact_match",
        lambda t: (t.args.metric_for_best_model, t.args.greater_is_better),
        ("eval_exact_match", True),
    ),
    "patience": (3, lambda t: patience(t), [3]),
    "seed": (1, lambda t: t.data_collator.seed == t.eval_collator.seed == t.args.seed == 1, True),
}  # fmt: skip
ELSEWHERE = {
    "name", "description", "data",  # for people
    "quantization",  # tests/test_quantization.py
    "keep_checkpoints",  # tests/test_train.py
}  # fmt: skip
TOGETHER = {
    "prompt": {"eval_answers": 0, "answers_only": False, "answer_canvas": None},
    "chat_share": {"prompt": "completion", "eval_answers": 0, "answers_only": False, "answer_canvas": None},
    "best_by": {"eval_answers": 2},
    "holes": {"block_noise": 8},
    "packing": {"max_length": 2000},
    "answers_only": {"answer_canvas": None},
    "train_on_padding": {"answer_canvas": None},
    "group_by_length": {"answer_canvas": None},  # lengths are those of the words
}


def filled(trainer):
    """Whether what is after an answer's end is filled up and seen."""
    return bool(first_batch(trainer)["attention_mask"].all())


def widest(trainer):
    """Whether the first batch has the longest sample of all."""
    lengths = trainer.lengths
    return lengths is not None and first_batch(trainer)["input_ids"].shape[1] == max(lengths)


def patience(trainer):
    return [
        call.early_stopping_patience
        for call in trainer.callback_handler.callbacks
        if isinstance(call, EarlyStoppingCallback)
    ]


def test_every_field_is_looked_at():
    assert EFFECTS.keys() | ELSEWHERE == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize("name", [name for name in EFFECTS if name != "vision_learning_rate"])
def test_every_field_has_its_effect(name, data, tmp_path):
    value, look, expected = EFFECTS[name]
    base = quick_recipe(**TOGETHER.get(name, {}))
    settings = settings_of(data, tmp_path / "run", eval_data=str(data))
    before = look(Run(settings, base).trainer())
    assert before != expected
    assert look(Run(settings, replace(base, **{name: value})).trainer()) == expected


def test_a_seed_has_its_order(data, tmp_path):
    """And it is that of the training batches, not of Trainer's own sampler."""
    run = Run(settings_of(data, tmp_path), quick_recipe(seed=5))
    numbers = [batch["sample_numbers"].tolist() for batch in run.trainer().get_train_dataloader()]
    assert numbers == list(TrainingBatches(Numbered(run.data.train), 4, 4, seed=5))
