"""The stages in small: what each trains and learns from, and that an interrupted run ends like one that was not."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from transformers_lladav import suite, tiny_stages
from transformers_lladav.cli_tiny import tiny
from transformers_lladav.cli_training import STOPPED
from transformers_lladav.shape_scenes import COLOURS, PLACES, SHAPES
from transformers_lladav.tiny_model import TinySizes
from transformers_lladav.tiny_results import record_of, write_checkpoint, write_record
from transformers_lladav.tiny_stages import STAGES, StageSamples, next_stage, train_stages

FACT = re.compile(
    rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}) (?:{'|'.join(sorted(PLACES, key=len, reverse=True))})"
)
STAGE = {stage.recipe.name: stage for stage in STAGES}
SMALL = TinySizes(vision_hidden=16, vision_layers=1, text_hidden=16, text_layers=1, heads=2, mlp_ratio=1)


def quick(stage):
    """The stage with two steps of four samples, and a checkpoint after each."""
    changes = {"max_steps": 2, "global_batch_size": 4, "checkpoint_every": 1}
    return replace(stage, recipe=replace(stage.recipe, **changes))


QUICK_STAGES = tuple(map(quick, STAGES))


def train(folder, **options):
    return train_stages(folder, SMALL, QUICK_STAGES, workers=0, **options)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run through all stages."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    return folder, train(folder)


def test_every_stage_begins_where_the_one_before_ended(run):
    folder, outcomes = run
    names = [stage.recipe.name for stage in STAGES]
    assert names == ["tower", *(f"stage1{step}" for step in ("", *"bcdef")), "stage2", "stage2b", "stage3"]
    assert [outcome.product for outcome in outcomes] == [folder / name / "model" for name in names]
    sources = [json.loads((folder / name / "run.json").read_text())["model"] for name in names]
    assert sources == [str(folder / name) for name in ("start", *(f"{name}/model" for name in names[:-1]))]


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_stages_train_what_they_say(run):
    folder, _ = run
    names = ["start", *(f"{stage.recipe.name}/model" for stage in STAGES)]
    start, tower, first, *_, third, second, _, _ = (weights(folder / name) for name in names)
    # The projector is fitted to the tower once that is trained.
    assert all("vision_tower" in name or "projector" in name for name in changed(start, tower))
    assert any("vision_tower" in name for name in changed(start, tower))
    assert not any("vision_tower" in name for name in changed(tower, third))
    for part in ("projector", "language_model.layers", "embed_tokens", "lm_head", "newline"):
        assert any(part in name for name in changed(tower, first)), part
        assert any(part in name for name in changed(third, second)), part
    assert any("vision_tower" in name for name in changed(third, second))


def test_an_interrupted_run_goes_on_and_ends_alike(run, tmp_path):
    folder, _ = run

    class Died(Exception):
        pass

    def dying_in(name):
        def on_stage(stage):
            def on_step(step, steps):
                if step == 1 and stage.recipe.name == name:
                    raise Died

            return {"on_step": on_step}

        return on_stage

    again = tmp_path / "run"
    for name in ("tower", "stage2"):
        with pytest.raises(Died):
            train(again, on_stage=dying_in(name))
    outcomes = train(again)
    assert [outcome.earlier for outcome in outcomes] == [True] * 7 + [False] * 3
    expected, got = weights(folder / "stage3" / "model"), weights(again / "stage3" / "model")
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_the_next_stage_is_the_first_that_is_not_done(run, tmp_path):
    assert next_stage(run[0]) == len(STAGES)
    assert next_stage(tmp_path) == 0
    train(tmp_path, until=1)
    assert next_stage(tmp_path) == 1


def test_the_checkpoint_is_the_last_stage_in_half_precision_with_all_recipes(run, tmp_path):
    folder, outcomes = run
    write_record(folder, QUICK_STAGES)
    written = weights(write_checkpoint(folder, outcomes[-1], tmp_path / "checkpoint"))
    last = weights(folder / "stage3" / "model")
    assert all(torch.equal(tensor, last[name].to(torch.bfloat16)) for name, tensor in written.items())
    recipes = json.loads((tmp_path / "checkpoint" / "recipe.json").read_text())
    assert list(recipes) == [stage.recipe.name for stage in STAGES]
    assert recipes["stage1"]["trains"] == ["projector", "newline", "language_model", "head"]
    config = json.loads((tmp_path / "checkpoint" / "generation_config.json").read_text())
    assert (config["block_length"], config["max_new_tokens"]) == (8, 48)


def test_a_record_tells_steps_times_and_curve(run):
    folder, _ = run
    record = record_of(folder / "stage2", quick(STAGE["stage2"]))
    assert (record["steps"], record["samples"], record["seed"]) == (2, 8, 0)
    assert [point["step"] for point in record["curve"]] == [1, 2]
    assert 0 <= record["curve"][0]["seconds"] <= record["seconds"]
    assert record["cpu_seconds"] >= record["curve"][0]["cpu_seconds"] >= 0
    tower = record_of(folder / "tower", quick(STAGE["tower"]))
    assert {"colour", "shape", "character", "value"} <= tower["curve"][0].keys()


def test_a_record_names_the_command_that_repeats_it(run, tmp_path):
    """With as many processes as shared a step's samples, compiled if any stage was."""
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    alone = json.loads(write_record(folder, QUICK_STAGES).read_text())
    assert alone["command"] == "lladav train tiny --all-stages"
    assert {stage["processes"] for stage in alone["stages"]} == {1}
    path = folder / "stage2" / "run.json"
    settings = json.loads(path.read_text())
    settings["recipe"] |= {"device_batch_size": settings["recipe"]["global_batch_size"] // 2, "compile": True}
    path.write_text(json.dumps(settings))
    shared = json.loads(write_record(folder, QUICK_STAGES).read_text())
    command = "torchrun --nproc_per_node 2 -m transformers_lladav train tiny --all-stages --compile"
    assert shared["command"] == command
    assert {stage["name"] for stage in shared["stages"] if stage["processes"] == 2} == {"stage2"}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stage_that_has_begun_stays_compiled_or_not(run, monkeypatch, tmp_path, wanted):
    folder, outcomes = run
    asked = []
    monkeypatch.setattr(
        tiny_stages, "_train", lambda stage, *_: asked.append(stage.recipe.compile) or outcomes[len(asked) - 1]
    )
    train(folder, compiled=wanted)
    assert asked == [False] * len(STAGES)
    asked.clear()
    (tmp_path / "stage2").mkdir()
    (tmp_path / "stage2" / "run.json").write_text(json.dumps({"recipe": {"compile": True}}))
    train(tmp_path, compiled=wanted)
    assert asked == [False, *[wanted] * 6, True, wanted, wanted]


# The command

app = typer.Typer()
app.command()(tiny)


@pytest.fixture
def command(monkeypatch):
    """Runs `lladav train tiny` with quick stages in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(tiny_stages, "STAGES", QUICK_STAGES)

    def invoke(*arguments, stages=None):
        quick_stages = partial(train_stages, sizes=SMALL, stages=QUICK_STAGES)
        monkeypatch.setattr(tiny_stages, "train_stages", stages or quick_stages)
        return CliRunner().invoke(app, [*map(str, arguments), "--workers", "0"])

    return invoke


def test_the_command_trains_the_next_stage_and_names_the_one_after(command, tmp_path):
    result = command("--runs", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "tower" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "stage1").exists()
    assert "Repeat the command for stage1, or give --all-stages" in result.output
    assert [stage["name"] for stage in json.loads((tmp_path / "stages.json").read_text())["stages"]] == ["tower"]


def test_the_command_ends_with_a_checkpoint(run, command, tmp_path):
    folder, output = run[0], tmp_path / "checkpoint"
    result = command("--runs", folder, "--all-stages", "--output", output)
    assert result.exit_code == 0, result.output
    assert result.output.count("done") == len(STAGES)
    assert f"Written to {output}" in result.output
    assert json.loads((output / "recipe.json").read_text()).keys() == STAGE.keys()


def test_a_folder_of_something_else_is_not_replaced_and_nothing_is_trained(command, tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    result = command("--runs", tmp_path / "runs", "--all-stages", "--output", folder)
    assert isinstance(result.exception, FileExistsError)
    assert f"{folder} holds something else than a checkpoint of these stages; choose another --output" in str(
        result.exception
    )
    assert (folder / "thesis.tex").read_text() == "precious"
    assert not (tmp_path / "runs").exists()


def test_an_older_checkpoint_is_replaced(run, tmp_path):
    folder, outcomes = run
    write_record(folder, QUICK_STAGES)
    written = write_checkpoint(folder, outcomes[-1], tmp_path / "checkpoint")
    (written / "README.md").write_text("of the older one")
    write_checkpoint(folder, outcomes[-1], written)
    assert not (written / "README.md").exists()
    assert (written / "model.safetensors").is_file()


def test_an_interrupted_command_says_how_to_go_on(command, tmp_path):
    stopped = SimpleNamespace(interrupted="SIGTERM", product=None)
    result = command("--runs", tmp_path, stages=lambda *_, **__: [stopped])
    assert result.exit_code == STOPPED
    assert "Stopped by SIGTERM; repeat the command to go on." in result.output


# Data


def test_no_two_stages_share_a_picture():
    ranges = sorted(
        (stage.first, stage.first + stage.recipe.max_steps * stage.recipe.global_batch_size) for stage in STAGES
    )
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ranges))
    assert ranges[-1][1] < 2**31 - 1_000_000


def test_samples_are_made_anew_alike_and_end():
    samples = StageSamples(STAGE["stage2"], 3)
    assert [len(list(samples)), len(samples)] == [3, 3]
    assert [message["role"] for message in samples[0]["messages"][:2]] == ["user", "assistant"]
    text = [part for message in samples[2]["messages"] for part in message["content"] if part["type"] == "text"]
    again = [part for message in samples[2]["messages"] for part in message["content"] if part["type"] == "text"]
    assert text == again


def pictures_of(sample):
    return [part for message in sample["messages"] for part in message["content"] if part["type"] == "image"]


def text_of(message):
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def samples_of(name, count=100):
    return [StageSamples(STAGE[name], count)[number] for number in range(count)]


def answers_of(sample):
    return [text_of(message) for message in sample["messages"] if message["role"] == "assistant"]


def is_text(sample):
    return text_of(sample["messages"][0]) in [request for request, _ in suite.TEXTS_OF_SCENES.values()]


def test_the_first_stage_says_what_is_where_and_nothing_else():
    for sample in samples_of("stage1"):
        assert len(pictures_of(sample)) == 1
        (answer,) = answers_of(sample)
        colours = sum(word in COLOURS for word in answer.split())
        assert is_text(sample)
        assert colours == sum(word in SHAPES for word in answer.split()) == len(FACT.findall(answer))
        assert " ".join(FACT.findall(answer)) == answer


@pytest.mark.parametrize(
    ("name", "share", "begin"),
    [
        ("stage1b", 0.8, {"What", "Which", "Where", "Is"}),
        ("stage1d", 0.8, {"How", "Are", "Read", "Describe"}),
        ("stage1e", 0.8, {"How", "Are", "Read", "Describe"}),
        ("stage1f", 0.8, {"How", "Are"}),
    ],
)
def test_then_come_questions_and_still_some_of_that(name, share, begin):
    samples = samples_of(name)
    asked = [sample for sample in samples if not is_text(sample)]
    assert abs(len(asked) - 100 * share) <= 15
    assert len(asked) < 100
    words = {text_of(m).split()[0] for sample in asked for m in sample["messages"] if m["role"] == "user"}
    assert words == begin if name == "stage1b" else words > begin
    for sample in samples:
        assert len(pictures_of(sample)) == 1
    assert max(len(answers_of(sample)) for sample in asked) > 8


def test_later_stages_keep_some_texts():
    samples = samples_of("stage2", 300)
    texts = [text_of(sample["messages"][0]) for sample in samples]
    assert 15 <= sum(map(is_text, samples)) <= 50  # one in ten
    assert {"Describe the shapes.", "Which shape is left of which?"} <= set(texts)
    assert "What does the sign say?" in texts
    assert "Describe the picture." in texts


def test_stages_ask_about_what_they_are_for():
    def pictures(stage):
        return {len(pictures_of(StageSamples(stage, 100)[number])) for number in range(60)}

    def tags(stage):
        texts = [text_of(m) for n in range(60) for m in StageSamples(stage, 100)[n]["messages"] if m["role"] == "user"]
        return {tag for tag in (suite.THINK, suite.NO_THINK) if any(text.endswith(tag) for text in texts)}

    second, third, fourth = (STAGE[name] for name in ("stage2", "stage2b", "stage3"))
    assert [pictures(stage) for stage in (second, third, fourth)] == [{1}, {1, 2}, {1, 2}]
    assert [tags(stage) for stage in (second, third, fourth)] == [set(), set(), {suite.THINK, suite.NO_THINK}]
