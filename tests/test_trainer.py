"""The trainer on its own: held-out figures that depend on nothing but the model, and checkpoints that are whole."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("peft")

from training_runs import quick_recipe, settings_of, write_data
from transformers_lladav.collation import Collator
from transformers_lladav.held_out import answer_questions, choose_questions
from transformers_lladav.samples import Numbered
from transformers_lladav.train import Run
from transformers_lladav.trainer import (
    COMPLETE,
    last_checkpoint,
    prune_checkpoints,
    remove_broken_checkpoints,
    whole_checkpoints,
)

HELD_OUT = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Ready to train, with held-out data and two questions of them."""
    folder = tmp_path_factory.mktemp("run")
    held_out = write_data(folder / "held-out", HELD_OUT, "validation")
    settings = settings_of(write_data(folder / "data", 8), folder / "run", eval_data=str(held_out))
    return Run(settings, quick_recipe(eval_answers=3))


def by_hand(run):
    """The loss of each held-out sample at its fixed noise."""
    collate = Collator(
        run.prepared.processor, answers_only=True, answer_canvas=64, image_separator="", fixed_noise=True
    )
    samples = Numbered(run.data.held_out)
    model = run.prepared.model.eval()
    with torch.no_grad():
        return [float(model(**collate([samples[number]])).loss) for number in range(len(samples))]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_the_held_out_loss_is_the_mean_over_samples_whatever_the_batches(batch_size, run, tmp_path):
    trainer = run.trainer(output=tmp_path)
    trainer.args.per_device_eval_batch_size = batch_size
    trainer.questions = ()
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(sum(by_hand(run)) / HELD_OUT, rel=1e-5)
    trainer.train_dataset.set_epoch(3)
    trainer.eval_dataset.set_epoch(3)
    torch.manual_seed(1)
    assert trainer.evaluate()["eval_loss"] == found


def test_a_blank_picture_counts_nothing_in_the_held_out_loss(run, tmp_path):
    """Batches of text alone get a picture in distributed runs; the mean over samples stays the same."""
    trainer = run.trainer(output=tmp_path)
    trainer.questions = ()
    examples = list(run.data.held_out)
    text = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "a red square"}]
    trainer.eval_dataset = Numbered([{"messages": text}, *examples])
    trainer.args.per_device_eval_batch_size = 1
    expected = trainer.evaluate()["eval_loss"]
    trainer.eval_collator.fill_in_picture = True
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_follows_the_weights(run, tmp_path):
    trainer = run.trainer(output=tmp_path)
    trainer.questions = ()
    before = trainer.evaluate()["eval_loss"]
    parameter = next(parameter for parameter in run.prepared.model.parameters() if parameter.requires_grad)
    kept = parameter.data.clone()
    parameter.data.mul_(1.5)
    assert trainer.evaluate()["eval_loss"] != before
    parameter.data.copy_(kept)
    assert trainer.evaluate()["eval_loss"] == before


def test_exact_match_is_counted(run, tmp_path, monkeypatch):
    trainer = run.trainer(output=tmp_path)
    questions = choose_questions(run.data.held_out, run.prepared.processor.tokenizer, 3)
    assert [question.source for question in questions] == [example.source for example in run.data.held_out][:3]
    assert trainer.questions == questions
    replies = answer_questions(run.prepared.model.eval(), run.prepared.processor, questions)
    # One more is made right by expecting what the model says.
    trainer.questions = [replace(questions[0], answer=replies[0].text), *questions[1:]]
    right = 1 + sum(reply.text == question.answer for reply, question in zip(replies[1:], questions[1:], strict=True))
    assert trainer.evaluate()["eval_exact_match"] == right / 3


def test_evaluating_draws_nothing_that_training_would_miss(run, tmp_path):
    trainer = run.trainer(output=tmp_path)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)


def test_every_sample_of_an_epoch_comes_once(run, tmp_path):
    loader = run.trainer(output=tmp_path).get_train_dataloader()
    epochs = []
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        epochs.append([number for batch in loader for number in batch["sample_numbers"].tolist()])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]


# Folders of checkpoints


def checkpoint(folder, step, whole=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "weights").write_text("...")
    if whole:
        (path / COMPLETE).write_text(f"step {step}\n")
    return path


def test_only_whole_checkpoints_count_in_the_order_of_their_steps(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None
    paths = [checkpoint(tmp_path, step) for step in (2, 10)]
    half = checkpoint(tmp_path, 30, whole=False)
    other = checkpoint(tmp_path, "mine")
    assert whole_checkpoints(tmp_path) == paths
    assert last_checkpoint(tmp_path) == paths[1]
    assert remove_broken_checkpoints(tmp_path) == [half]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2", other.name]


@pytest.mark.parametrize(
    ("keep", "best", "left"), [(1, None, [40]), (2, 10, [10, 30, 40]), (2, 30, [30, 40]), (9, None, [10, 20, 30, 40])]
)
def test_the_latest_and_the_best_stay(keep, best, left, tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint(tmp_path, step)
    prune_checkpoints(tmp_path, keep, None if best is None else tmp_path / f"checkpoint-{best}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]
