"""Whole runs: taken up after every kind of end they equal a run that was never interrupted, to the bit."""

import errno
import importlib.util
import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256

import pytest
import torch

pytest.importorskip("peft")

import transformers_lladav.train as train_module
from training_runs import (
    SAMPLES,
    Died,
    assert_same_run,
    command_line,
    log_of,
    product_of,
    quick_recipe,
    same_tensors,
    settings_of,
    start,
    train,
    weights_of,
    write_data,
)
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVForMaskedDiffusion
from transformers_lladav.batches import TrainingBatches
from transformers_lladav.cli_training import STOPPED
from transformers_lladav.record_files import DataError
from transformers_lladav.samples import Numbered
from transformers_lladav.train import ENOUGH_TO_HOLD_OUT, Run
from transformers_lladav.trainable import expected_trainable
from transformers_lladav.trainer import whole_checkpoints

STEPS = 2 * SAMPLES // 4
HELD_OUT = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("held-out"), HELD_OUT, "validation")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """A LoRA run with dropout, from start to end."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train(settings_of(data, folder), quick_recipe()).step == STEPS
    return folder


@pytest.fixture(scope="module")
def evaluated(data, held_out, tmp_path_factory):
    """The same with held-out data, some of which are answered by generation."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train(settings_of(data, folder, eval_data=str(held_out)), quick_recipe(eval_answers=2))
    return folder


def steps_of(folder):
    return [int(path.name.removeprefix("checkpoint-")) for path in whole_checkpoints(folder / "checkpoints")]


# Going on


@pytest.mark.parametrize(
    ("die_at", "kept"),
    [(1, []), (3, [2]), (5, [2, 4]), (8, [4, 6])],
    ids=["before the first checkpoint", "in an epoch", "after an epoch's end", "at the last step"],
)
def test_a_run_that_died_goes_on_as_if_nothing_had_been(die_at, kept, data, uninterrupted, tmp_path):
    settings = settings_of(data, tmp_path / "run")
    assert train(settings, quick_recipe(), die_at) is None
    assert steps_of(settings.output) == kept
    assert not (settings.output / "adapter").exists()
    assert train(settings, quick_recipe()).step == STEPS
    assert_same_run(settings.output, uninterrupted)


CASES = {
    "all parameters": ("full", {}, {}, 5),
    "accumulation": ("lora", {"device_batch_size": 2}, {}, 3),
    "workers": ("lora", {}, {"workers": 2}, 3),
    "lengths": ("lora", {"group_by_length": True}, {}, 7),
    "complementary views": ("lora", {"complementary": True}, {}, 3),
    "packed rows": ("lora", {"packing": True, "max_length": 160}, {}, 3),
    "a stream": ("lora", {"max_steps": 7}, {"stream": True}, 7),
    "a stream with workers": ("lora", {"max_steps": 6}, {"stream": True, "workers": 2, "shuffle_buffer": 5}, 5),
    "an end in an epoch": ("lora", {"max_steps": 6}, {}, 6),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_run_goes_on(name, data, tmp_path):
    recipe_name, changes, options, die_at = CASES[name]
    recipe = quick_recipe(recipe_name, **changes)
    whole, broken = (settings_of(data, tmp_path / part, **options) for part in ("whole", "broken"))
    steps = train(whole, recipe).step
    assert [record["step"] for record in log_of(whole.output)] == list(range(1, steps + 1))
    assert train(broken, recipe, die_at) is None
    train(broken, recipe)
    assert_same_run(whole.output, broken.output)


def test_runs_of_another_seed_differ(data, uninterrupted, tmp_path):
    """The comparisons above could fail."""
    settings = settings_of(data, tmp_path / "run")
    train(settings, quick_recipe(seed=1))
    assert log_of(settings.output)[0] != log_of(uninterrupted)[0]
    assert not same_tensors(product_of(settings.output), product_of(uninterrupted))


def test_evaluation_leaves_training_as_it_is(uninterrupted, evaluated):
    assert [record for record in log_of(evaluated) if "loss" in record] == log_of(uninterrupted)
    assert [record["step"] for record in log_of(evaluated) if "eval_loss" in record] == [2, 4, 6, 8]


def test_a_run_with_evaluations_goes_on(data, held_out, evaluated, tmp_path):
    settings, recipe = settings_of(data, tmp_path / "run", eval_data=str(held_out)), quick_recipe(eval_answers=2)
    train(settings, recipe, 5)
    train(settings, recipe)
    assert_same_run(settings.output, evaluated)


def test_all_steps_were_done_and_the_product_is_missing(data, tmp_path, monkeypatch):
    """A run that ends in the middle of an epoch takes no further step when only its product was not written."""

    def die(*_):
        raise Died

    recipe, whole, broken = quick_recipe(max_steps=6), *(settings_of(data, tmp_path / name) for name in "ab")
    train(whole, recipe)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "write_result", die)
        assert train(broken, recipe) is None
    assert steps_of(broken.output) == [4, 6]
    assert train(broken, recipe).step == 6
    assert_same_run(whole.output, broken.output)


def test_a_finished_run_is_left_alone(data, uninterrupted):
    files = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    outcome = train(settings_of(data, uninterrupted), quick_recipe())
    assert (outcome.product, outcome.step, outcome.earlier) == (uninterrupted / "adapter", STEPS, True)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()} == files


# Violent ends

AT_STEP = """
import os, signal
from transformers_lladav.training_callbacks import Report
def die(self, args, state, control, **kwargs):
    if state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Report.on_step_end = die
"""
WHILE_SAVING = """
import os, signal, torch
save = torch.save
def die(value, path, *args, **kwargs):
    save(value, path, *args, **kwargs)
    if "checkpoint-4" in str(path):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = die
"""


@pytest.mark.parametrize(("before", "broken"), [(AT_STEP, []), (WHILE_SAVING, ["checkpoint-4"])], ids=["step", "save"])
def test_kill_9(before, broken, data, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = start(command_line("lora", data, folder), before)
    assert process.wait(300) == -signal.SIGKILL, process.stderr.read()
    assert steps_of(folder) == [2]
    present = {path.name for path in (folder / "checkpoints").iterdir()}
    assert present == {"checkpoint-2", *broken}
    assert train(settings_of(data, folder), quick_recipe()).step == STEPS
    assert_same_run(folder, uninterrupted)


def test_a_checkpoint_without_its_end_is_removed(data, uninterrupted, tmp_path):
    settings = settings_of(data, tmp_path / "run")
    train(settings, quick_recipe(), 5)
    half = settings.output / "checkpoints" / "checkpoint-4"
    (half / "complete").unlink()
    (half / "optimizer.pt").write_bytes(b"half")
    begun = []
    Run(settings, quick_recipe()).train(lambda step, steps: begun.append((step, half.exists())))
    assert begun[0] == (2, False)
    assert_same_run(settings.output, uninterrupted)


def signalled(settings, recipe, step, number):
    """A run that gets a signal at a step."""
    return Run(settings, recipe).train(lambda at, steps: os.kill(os.getpid(), number) if at == step else None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(number, data, uninterrupted, tmp_path):
    settings = settings_of(data, tmp_path / "run")
    before = signal.getsignal(number)
    outcome = signalled(settings, quick_recipe(), 3, number)
    assert (outcome.interrupted, outcome.step, outcome.product) == (signal.Signals(number).name, 3, None)
    assert signal.getsignal(number) is before
    assert steps_of(settings.output) == [2, 3]
    assert not (settings.output / "adapter").exists()
    train(settings, quick_recipe())
    assert_same_run(settings.output, uninterrupted)


SLOW_DATA = """
import os, time
from transformers_lladav.collation import Collator
collate = Collator.__call__
def slowly(self, features):
    time.sleep(2)
    return collate(self, features)
Collator.__call__ = slowly
os.setpgrp()
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="workers cannot tell who sent a signal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_spares_those_that_load_data(number, data, uninterrupted, tmp_path):
    """As torchrun sends it, and a terminal where Ctrl-C is pressed; the run is waiting for data then."""
    folder = tmp_path / "run"
    process = start(command_line("lora", data, folder, "--workers", "2"), SLOW_DATA)
    while not (folder / "checkpoints" / "checkpoint-2" / "complete").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(300) == STOPPED, process.stderr.read()
    assert steps_of(folder) == [2, 3]
    train(settings_of(data, folder, workers=2), quick_recipe())
    assert_same_run(folder, uninterrupted)


def test_an_evaluation_that_a_signal_left_no_time_for_is_made_up(data, held_out, evaluated, tmp_path):
    settings, recipe = settings_of(data, tmp_path / "run", eval_data=str(held_out)), quick_recipe(eval_answers=2)
    assert signalled(settings, recipe, 4, signal.SIGTERM).step == 4
    assert [record["step"] for record in log_of(settings.output) if "eval_loss" in record] == [2]
    train(settings, recipe)
    assert_same_run(settings.output, evaluated)


def test_a_signal_at_the_last_step_comes_too_late_to_stop(data, uninterrupted, tmp_path):
    settings = settings_of(data, tmp_path / "run")
    outcome = signalled(settings, quick_recipe(), STEPS, signal.SIGTERM)
    assert (outcome.interrupted, outcome.product) == (None, settings.output / "adapter")
    assert_same_run(settings.output, uninterrupted)


# What is no number


def test_a_loss_that_is_no_number_names_step_and_samples(data, tmp_path):
    settings, recipe = settings_of(data, tmp_path / "run"), quick_recipe()
    run = Run(settings, recipe)

    def poison(step, steps):
        if step == 3:
            run.prepared.bare.lm_head.weight.data[0, 0] = float("nan")

    with pytest.raises(FloatingPointError) as caught:
        run.train(poison)
    fourth = list(TrainingBatches(Numbered(run.data.train), 4, 4, seed=0))[3]
    lines = ", ".join(f"{data.name}:{number + 2}" for number in fourth)  # after the heading
    kept = settings.output / "checkpoints" / "checkpoint-2"
    assert f"the loss is nan at step 4, with {lines}; {kept} stays" in str(caught.value)
    assert steps_of(settings.output) == [2]


def test_a_gradient_that_is_no_number_stops_before_the_weights_change(data, tmp_path):
    settings, recipe = settings_of(data, tmp_path / "run"), quick_recipe()
    run = Run(settings, recipe)
    trained = [parameter for parameter in run.prepared.model.parameters() if parameter.requires_grad]
    seen = {}

    def poison(step, steps):
        if step == 3:
            seen.update(enumerate(parameter.detach().clone() for parameter in trained))
            trained[0].register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(FloatingPointError, match="a gradient is not finite at step 4, although the loss is"):
        run.train(poison)
    assert all(torch.equal(parameter, seen[number]) for number, parameter in enumerate(trained))
    assert steps_of(settings.output) == [2]


# A disk that is full


@contextmanager
def largest_file(size):
    """No file may grow larger, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [20_000, 200_000], ids=["weights", "state of the optimiser"])
def test_a_disk_that_is_full_at_a_checkpoint(size, data, uninterrupted, tmp_path):
    settings = settings_of(data, tmp_path / "run")
    folder = settings.output / "checkpoints"
    limits = []

    def fill(step, steps):
        if step == 4:
            limits.append(largest_file(size))
            limits[0].__enter__()

    try:
        with pytest.raises(OSError, match="checkpoint-4 could not be written and was removed") as caught:
            Run(settings, quick_recipe()).train(fill)
    finally:
        limits[0].__exit__(None, None, None)
    assert f"{folder / 'checkpoint-2'} is the last one; make room and repeat the command" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]
    train(settings, quick_recipe())
    assert_same_run(settings.output, uninterrupted)


@pytest.mark.parametrize("name", ["lora", "projector"])
def test_a_disk_that_is_full_at_the_end(name, data, tmp_path, monkeypatch):
    write = train_module.write_result

    def full(*args):
        with largest_file(20_000):
            write(*args)

    settings, recipe = settings_of(data, tmp_path / "run"), quick_recipe(name)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "write_result", full)
        with pytest.raises(OSError, match="The checkpoints stay; make room and repeat the command") as caught:
            train(settings, recipe)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert {path.name for path in settings.output.iterdir()} == {"checkpoints", "log.jsonl", "run.json"}
    outcome = train(settings, recipe)
    last = settings.output / "checkpoints" / f"checkpoint-{STEPS}"
    assert same_tensors(
        {key: value.float() for key, value in product_of(settings.output).items()},
        {key: value.to(product_of(settings.output)[key].dtype).float() for key, value in weights_of(last).items()},
    )
    assert outcome.product.is_dir()


# What changes


@pytest.mark.parametrize("name", ["lora", "full", "projector"])
def test_a_run_changes_what_the_recipe_trains_and_nothing_else(name, data, tmp_path):
    (file,) = BUNDLED_CHECKPOINT.glob("*.safetensors")
    digest = sha256(file.read_bytes()).hexdigest()
    recipe = quick_recipe(name)
    base = LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT, dtype=torch.float32)
    run = Run(settings_of(data, tmp_path / "run"), recipe)
    before = {name: parameter.detach().clone() for name, parameter in run.prepared.model.named_parameters()}
    run.train()
    after = dict(run.prepared.model.named_parameters())
    changed = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    assert changed == expected_trainable(base, recipe)
    assert sha256(file.read_bytes()).hexdigest() == digest
    stored = {key.removeprefix("base_model.model."): value for key, value in product_of(run.settings.output).items()}
    if recipe.lora is None:
        original = weights_of(BUNDLED_CHECKPOINT)
        rounded = {key for key in stored if not torch.equal(stored[key], original[key])}
        assert rounded <= changed
        assert stored.keys() == original.keys()
    else:
        assert len(stored) == len(changed)


def test_without_the_adapter_it_is_the_base_to_the_bit(data, tmp_path):
    run = Run(settings_of(data, tmp_path / "run"), quick_recipe())
    run.train()
    tuned = run.prepared.model.eval()
    base = LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT, dtype=torch.float32).eval()
    batch = run.trainer(output=tmp_path / "other").eval_collator([Numbered(run.data.train)[0]])
    for name in ("sample_numbers", "labels", "loss_weights"):
        batch.pop(name)
    with torch.no_grad():
        with tuned.disable_adapter():
            assert torch.equal(tuned(**batch).logits, base(**batch).logits)
        assert not torch.equal(tuned(**batch).logits, base(**batch).logits)


# Held-out data


def test_the_best_checkpoint_is_what_a_run_ends_with(data, held_out, tmp_path, monkeypatch):
    """A rate that is too high: patience ends with the first evaluation that is no better, two steps after the best.

    It takes no further step when it is taken up because its product was not written.
    """

    def die(*_):
        raise Died

    recipe = quick_recipe(learning_rate=0.3, epochs=4.0, patience=1)
    settings = settings_of(data, tmp_path / "run", eval_data=str(held_out))
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "write_result", die)
        train(settings, recipe)
    losses = {record["step"]: record["eval_loss"] for record in log_of(settings.output) if "eval_loss" in record}
    *improving, best, last = losses
    assert last == best + 2 < 2 * STEPS
    assert losses[last] >= losses[best]
    ordered = [losses[step] for step in (*improving, best)]
    assert ordered == sorted(ordered, reverse=True)
    outcome = train(settings, recipe)
    assert (outcome.step, outcome.metrics["step"], outcome.metrics["eval_loss"]) == (last, best, losses[best])
    kept, other = (weights_of(settings.output / "checkpoints" / f"checkpoint-{step}") for step in (best, last))
    assert same_tensors(product_of(settings.output), kept)
    assert not same_tensors(kept, other)


def test_old_checkpoints_go_and_the_best_one_stays(data, held_out, tmp_path):
    settings = settings_of(data, tmp_path / "run", eval_data=str(held_out))
    recipe = quick_recipe(learning_rate=0.3, epochs=2.0, checkpoint_every=1, max_steps=5, keep_checkpoints=1)
    train(settings, recipe)
    losses = {record["step"]: record["eval_loss"] for record in log_of(settings.output) if "eval_loss" in record}
    best = min(losses, key=losses.__getitem__)
    assert steps_of(settings.output) == sorted({best, 5})
    assert len(list((settings.output / "checkpoints").iterdir())) == len({best, 5})


def test_a_twentieth_is_held_out_of_enough_data_and_never_trained_on(tmp_path):
    enough = write_data(tmp_path / "enough", ENOUGH_TO_HOLD_OUT)
    run = Run(settings_of(enough, tmp_path / "run", held_out_share=None), quick_recipe())
    counts = {"samples": 19, "tokens": sum(run.data.lengths), "held_out": 1, "left_out": 0, "cut": 0}
    assert run.data.facts == counts
    assert len(run.data.lengths) == 19
    sources = [[example.source for example in part] for part in (run.data.train, run.data.held_out)]
    assert sorted(sources[0] + sources[1]) == sorted(f"{enough.name}:{line + 2}" for line in range(ENOUGH_TO_HOLD_OUT))
    few = write_data(tmp_path / "few", ENOUGH_TO_HOLD_OUT - 1)
    assert Run(settings_of(few, tmp_path / "run", held_out_share=None), quick_recipe()).data.facts["held_out"] == 0


# Refusals


def test_the_same_folder_for_something_else(data, held_out, tmp_path):
    settings, recipe = settings_of(data, tmp_path / "run"), quick_recipe()
    train(settings, recipe, 1)
    changed = replace(recipe, learning_rate=5e-4, lora=replace(recipe.lora, rank=4))
    with pytest.raises(ValueError, match=r"holds a run with other settings") as caught:
        Run(settings, changed).train()
    assert "recipe.learning_rate was 0.0001 and is 0.0005" in str(caught.value)
    assert "recipe.lora.rank was 2 and is 4" in str(caught.value)
    with pytest.raises(ValueError, match=rf'data was "{data}" and is "{held_out}"'):
        Run(settings_of(held_out, settings.output), recipe).train()
    other = tmp_path / "model"
    shutil.copytree(BUNDLED_CHECKPOINT, other)
    with pytest.raises(ValueError, match=rf'model was "{BUNDLED_CHECKPOINT}" and is "{other}"'):
        Run(replace(settings, model=str(other)), recipe).train()
    assert steps_of(settings.output) == []


def test_two_runs_do_not_share_a_folder_at_a_time(data, tmp_path):
    settings = settings_of(data, tmp_path / "run")

    def again(step, steps):
        if step == 2:
            with pytest.raises(
                ValueError, match=r"another run writes to .*run at this moment; wait for it or stop it"
            ):
                train(settings, quick_recipe())

    assert Run(settings, quick_recipe()).train(again).step == STEPS


def test_a_run_killed_before_it_wrote_what_it_is_about_begins_again(data, uninterrupted, tmp_path):
    settings = settings_of(data, tmp_path / "run")
    settings.output.mkdir()
    (settings.output / ".run.json.part").write_text("{")
    train(settings, quick_recipe())
    assert_same_run(settings.output, uninterrupted)


def test_a_folder_with_other_files(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds other files and no run; choose another --output folder"):
        train(settings_of(data, tmp_path), quick_recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_usable_sample(tmp_path):
    table = tmp_path / "empty.csv"
    table.write_text("image,question,answer\nno.png,What is it?,a cat\n")
    with pytest.raises(DataError, match=r"no\.png"):
        Run(settings_of(table, tmp_path / "run"), quick_recipe())
    with pytest.raises(DataError, match=r"empty\.csv"):
        Run(settings_of(table, tmp_path / "run", skip_bad=True), quick_recipe())
    assert not (tmp_path / "run").exists()


def test_samples_that_cannot_be_used_are_left_out_and_counted(tmp_path):
    table = write_data(tmp_path / "data", 4)
    with table.open("a") as file:
        file.write("no.png,What is it?,a cat\n")
    run = Run(settings_of(table, tmp_path / "run", skip_bad=True), quick_recipe())
    tokens = sum(run.data.lengths)
    assert run.data.facts == {"samples": 4, "tokens": tokens, "held_out": 0, "left_out": 1, "cut": 0}


@pytest.mark.parametrize(("share", "same_as"), [(0.0, "completion"), (0.1, "chat")])
def test_samples_are_as_long_as_their_longest_form(share, same_as, data, tmp_path):
    """A sample that may be a chat needs the room of one, the chat's turn markers included."""
    recipe = quick_recipe(prompt="completion", chat_share=share, answers_only=False, answer_canvas=None)
    run = Run(settings_of(data, tmp_path / "run"), recipe)
    chats = replace(run.trainer().data_collator, prompt="chat", chat_share=0.0)
    forms = {"chat": chats, "completion": replace(chats, prompt="completion")}
    lengths = {name: [len(form.prepare(example)) for example in run.data.train] for name, form in forms.items()}
    assert run.data.lengths == lengths[same_as]
    assert min(map(int.__sub__, lengths["chat"], lengths["completion"])) > 0


@pytest.mark.parametrize(
    ("changes", "given"),
    [({"best_by": "exact_match", "eval_answers": 2}, 'best_by="exact_match"'), ({"patience": 3}, "patience=3")],
)
def test_what_evaluations_decide_needs_held_out_data(changes, given, data, tmp_path):
    with pytest.raises(ValueError, match=f"^{given}: needs held-out data; give --eval-data or --hold-out"):
        Run(settings_of(data, tmp_path / "run"), quick_recipe(**changes))


def test_a_stream_is_not_grouped_by_length(data, tmp_path):
    with pytest.raises(ValueError, match="lengths, which a stream does not know before; leave out --stream, or pass"):
        Run(settings_of(data, tmp_path / "run", stream=True), quick_recipe(max_steps=2, group_by_length=True))


def test_too_few_to_hold_some_out(tmp_path):
    few = write_data(tmp_path / "data", 4)
    with pytest.raises(ValueError, match=r"share=0\.05 of 4 examples holds out 0"):
        Run(settings_of(few, tmp_path / "run", held_out_share=0.05), quick_recipe())


# Precision


def test_bf16_on_a_cpu(data, uninterrupted, tmp_path):
    run = Run(settings_of(data, tmp_path / "run"), quick_recipe(precision="bf16"))
    types = {(parameter.requires_grad, parameter.dtype) for parameter in run.prepared.model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    run.train()
    assert {tensor.dtype for tensor in product_of(run.settings.output).values()} == {torch.float32}
    losses, exact = ([record["loss"] for record in log_of(folder)] for folder in (run.settings.output, uninterrupted))
    assert losses[:4] == pytest.approx(exact[:4], rel=0.05)
    assert losses[:4] != exact[:4]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_checkpointing_changes_nothing(name, data, tmp_path):
    folders = []
    for active in (False, True):
        settings = settings_of(data, tmp_path / str(active))
        train(settings, quick_recipe(name, gradient_checkpointing=active, max_steps=4))
        folders.append(settings.output)
    assert_same_run(*folders)


@pytest.mark.slow
def test_compiled(data, uninterrupted, tmp_path):
    settings = settings_of(data, tmp_path / "run")
    train(settings, quick_recipe(compile=True, max_steps=4))
    losses, plain = ([record["loss"] for record in log_of(folder)] for folder in (settings.output, uninterrupted))
    assert losses[0] == pytest.approx(plain[0], rel=0.2)  # dropout draws others
    assert product_of(settings.output).keys() == product_of(uninterrupted).keys()


# Rates and logs


def test_figures_are_in_tensorboard_too(data, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = settings_of(data, tmp_path / "run", report_to="tensorboard")
    train(settings, quick_recipe(max_steps=4))
    events = accumulator.EventAccumulator(str(settings.output / "logs")).Reload()
    records = log_of(settings.output)
    for name in ("loss", "learning_rate"):
        found = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert found == [(record["step"], pytest.approx(record[name])) for record in records]


def test_no_logs_for_tensorboard_if_not_wanted(uninterrupted):
    assert not (uninterrupted / "logs").exists()


@pytest.mark.parametrize(
    ("package", "report_to", "message"),
    [
        ("tensorboard", "tensorboard", r"pip install 'transformers_lladav\[train\]', or pass --report-to none"),
        ("wandb", "wandb", r"pip install wandb, or pass --report-to none"),
        ("accelerate", "none", r"training: accelerate is missing; pip install 'transformers_lladav\[train\]'"),
    ],
)
def test_packages_that_are_missing(package, report_to, message, data, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ImportError, match=message):
        train(settings_of(data, tmp_path / "run", report_to=report_to), quick_recipe())
