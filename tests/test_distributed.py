"""Two processes do on CPUs what one does: training with DDP and FSDP2, tensor-parallel inference, tiny stages."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import python_process
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVConfig, LladaVForMaskedDiffusion, LladaVProcessor
from transformers_lladav.batches import TrainingBatches
from transformers_lladav.launching import find_config
from transformers_lladav.samples import Numbered
from transformers_lladav.scene_questions import ASKERS
from transformers_lladav.shape_scenes import make_scene, render_scene

pytest.importorskip("accelerate")
pytest.importorskip("peft")
psutil = pytest.importorskip("psutil")  # which accelerate needs

SCRIPT = Path(__file__).parent / "distributed_runs.py"
SECONDS = 240  # after which processes are killed; they need about 20
PROCESSES = 2
SAMPLES, STEPS, STEP_SAMPLES, BATCH = 24, 6, 8, 2
CLIP = 0.5  # below all norms here, so that clipping is part of what is compared


def run(arguments, folder, task):
    """Run the script, and leave no process behind whatever happens."""
    (folder / "task.json").write_text(json.dumps(task))
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments, str(folder)],
            env={**environment, **one_thread},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = f"no end after {SECONDS} s"
        finally:
            _end(process)
    assert code == 0, f"{code}\n{(folder / 'output.txt').read_text()[-6000:]}"
    return folder


def _end(process):
    """End a process and its descendants, which torchrun puts into sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for member in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


def free_port():
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run_ranks(processes, folder, task, name):
    """Run the script in so many processes; several meet as under torchrun, at a store that their launcher holds."""
    (folder / "task.json").write_text(json.dumps(task))
    environments = [dict(os.environ)]
    if processes > 1:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        meeting = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        }  # fmt: skip
        environments = [
            {**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)
        ]
    ranks = [python_process.start([SCRIPT, name, folder], env=environment) for environment in environments]
    try:
        with ThreadPoolExecutor(processes) as readers:
            printed = list(readers.map(lambda rank: rank.communicate(SECONDS), ranks))
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * processes, printed
    return folder


def accelerate_launch(config, task):
    """The shipped settings, in float32 and with as many processes as there is room for."""
    return [
        *("-m", "accelerate.commands.launch", "--config_file", str(find_config(config)), "--mixed_precision", "no"),
        *("--num_processes", str(PROCESSES), "--main_process_port", free_port(), str(SCRIPT), task),
    ]


# Training


@pytest.fixture(scope="module")
def float32_checkpoint(tmp_path_factory):
    """The bundled checkpoint in float32, so that results are saved without rounding."""
    folder = tmp_path_factory.mktemp("checkpoint") / "float32"
    LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT, dtype=torch.float32).save_pretrained(folder)
    LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT).save_pretrained(folder)
    return folder


def shows_a_picture(number):
    return number % 3 == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions about scenes, most of them without a picture, so that some batches have none at all."""
    folder = tmp_path_factory.mktemp("data")
    records = []
    for number in range(SAMPLES):
        scene = make_scene("train", number)
        question = ASKERS[("colour", "shape", "position", "count")[number % 4]](scene, random.Random(number))
        record = {"question": question.text, "answer": question.answer}
        if shows_a_picture(number):
            render_scene(scene, 96).save(folder / f"{number}.png")
            record["image"] = f"{number}.png"
        records.append(json.dumps(record))
    (folder / "train.jsonl").write_text("\n".join(records) + "\n")
    (folder / "held_out.jsonl").write_text("\n".join(records[:5]) + "\n")  # odd: dealt out to two unevenly
    return folder


CHANGES = [
    f"max_steps={STEPS}",
    f"global_batch_size={STEP_SAMPLES}",
    f"device_batch_size={BATCH}",
    "learning_rate=1e-3",
    "checkpoint_every=3",
    "eval_answers=2",
    "max_length=512",
    f"max_grad_norm={CLIP}",
]
RECIPES = {"lora": [*CHANGES, "lora.rank=4"], "full": CHANGES}


@pytest.fixture(scope="module")
def task(float32_checkpoint, data):
    return {
        "model": str(float32_checkpoint),
        "data": str(data / "train.jsonl"),
        "eval_data": str(data / "held_out.jsonl"),
        "recipes": RECIPES,
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory, task):
    """Both recipes in one process, which accumulates gradients."""
    return run_ranks(1, tmp_path_factory.mktemp("one"), task, "train")


@pytest.fixture(scope="module")
def ddp(tmp_path_factory, task):
    """Both recipes in two processes with a whole model each."""
    return run_ranks(PROCESSES, tmp_path_factory.mktemp("ddp"), task, "train")


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory, task):
    """Both recipes in two processes with half a model each; the last recipe is taken up again from its middle."""
    again = {"again": "full"}
    return run(accelerate_launch("eight_gpus_fsdp2", "train"), tmp_path_factory.mktemp("fsdp2"), task | again)


def figures(folder, recipe, name):
    """What was logged under a name, step by step."""
    lines = (folder / recipe / "log.jsonl").read_text().splitlines()
    return {record["step"]: record[name] for record in map(json.loads, lines) if name in record}


def weights(folder, recipe):
    [file] = Path(json.loads((folder / "facts.json").read_text())[recipe]["product"]).glob("*.safetensors")
    return load_file(file)


def test_batches_without_a_picture_meet_batches_with_one():
    """What makes the comparisons below worth something: in some step, one process has pictures and the other none."""
    batches = list(TrainingBatches(Numbered([{}] * SAMPLES), STEP_SAMPLES, BATCH))
    pictures = [any(map(shows_a_picture, batch)) for batch in batches]
    assert {True, False} in [set(pictures[i : i + PROCESSES]) for i in range(0, len(pictures), PROCESSES)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_as_one_does(request, one, kind, recipe):
    two = request.getfixturevalue(kind)
    facts = [json.loads((folder / "facts.json").read_text())[recipe] for folder in (one, two)]
    assert [fact["kind"] for fact in facts] == ["NO", {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}[kind]]
    assert [fact["processes"] for fact in facts] == [1, PROCESSES]
    assert [fact["device"] for fact in facts] == ["cpu", "cpu"]
    for name in ("loss", "grad_norm", "eval_loss"):
        expected, found = figures(one, recipe, name), figures(two, recipe, name)
        assert set(expected) == ({3, 6} if name == "eval_loss" else set(range(1, STEPS + 1)))
        assert found == pytest.approx(expected, rel=1e-5)
    assert min(figures(one, recipe, "grad_norm").values()) > CLIP  # all were clipped


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_end_with_the_weights_of_one(request, one, kind, recipe):
    assert_same_weights(weights(request.getfixturevalue(kind), recipe), weights(one, recipe))


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Softmax does not see what a key's bias adds to all scores alike: its gradient is rounding, and AdamW makes
        # full steps of that.
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-5), name


def test_the_weights_that_were_compared_had_been_trained(one, float32_checkpoint):
    before, after = load_file(float32_checkpoint / "model.safetensors"), weights(one, "full")
    unchanged = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert unchanged == {name for name in before if ".post_layernorm." in name}  # which LLaDA-V never reads
    assert all(tensor.any() for name, tensor in weights(one, "lora").items() if ".lora_B." in name)  # they begin at 0


def test_a_sharded_run_goes_on_from_a_checkpoint(fsdp2):
    """The run was taken up after step 3 and ended as before."""
    product = Path(json.loads((fsdp2 / "facts.json").read_text())["full"]["product"])
    first = product.with_name(product.name + "-first")
    assert_same_weights(load_file(product / "model.safetensors"), load_file(first / "model.safetensors"))


def test_what_a_sharded_run_ends_with_is_a_whole_checkpoint(fsdp2, one):
    """It loads like any other, and its logits are those of the one that a single process wrote."""
    picture = render_scene(make_scene("test", 0), 96)
    logits = []
    for folder in (fsdp2, one):
        source = json.loads((folder / "facts.json").read_text())["full"]["product"]
        model = LladaVForMaskedDiffusion.from_pretrained(source).eval()
        inputs = LladaVProcessor.from_pretrained(source)(text="<image>What?", images=picture, return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**inputs).logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


# Inference


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The bundled checkpoint, and one whose four heads share two heads of keys and values; its weights are random."""
    folder = tmp_path_factory.mktemp("models") / "grouped"
    config = LladaVConfig.from_pretrained(BUNDLED_CHECKPOINT)
    config.text_config.num_key_value_heads = 2
    torch.manual_seed(0)
    LladaVForMaskedDiffusion(config).save_pretrained(folder)
    LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT).save_pretrained(folder)
    return {"bundled": str(BUNDLED_CHECKPOINT), "grouped": str(folder)}


@pytest.fixture(scope="module")
def inferred(tmp_path_factory, models):
    """What one process and what two processes make of a picture and a question."""
    picture = tmp_path_factory.mktemp("picture") / "scene.png"
    render_scene(make_scene("test", 1), 96).save(picture)
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": "Describe the picture."}]
    task = {
        "models": models,
        "chat": [{"role": "user", "content": content}],
        "settings": {"max_new_tokens": 32, "block_length": 8},
    }
    return [
        load_file(run_ranks(processes, tmp_path_factory.mktemp("inferred"), task, "infer") / "results.safetensors")
        for processes in (1, PROCESSES)
    ]


@pytest.mark.parametrize("name", ["bundled", "grouped"])
def test_tensor_parallel_inference_gives_the_same(inferred, name):
    one, two = inferred
    torch.testing.assert_close(two[f"{name}/logits"], one[f"{name}/logits"], rtol=1e-5, atol=1e-4)
    assert torch.equal(two[f"{name}/answer"], one[f"{name}/answer"])


@pytest.mark.parametrize(("name", "key_rows"), [("bundled", 128), ("grouped", 64)])
def test_each_process_holds_half_of_the_heads(inferred, name, key_rows):
    """Four heads of 32; keys have as many, or two."""
    for found, processes in zip(inferred, (1, PROCESSES), strict=True):
        shapes = {part: found[f"{name}/{part}"].tolist() for part in ("q_proj", "k_proj", "o_proj")}
        assert shapes == {
            "q_proj": [128 // processes, 128],
            "k_proj": [key_rows // processes, 128],
            "o_proj": [128, 128 // processes],
        }


# The tiny model's stages


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The stages in one process and in two."""
    processes = {"one": 1, "two": PROCESSES}
    return {name: run_ranks(count, tmp_path_factory.mktemp(name), {}, "tiny") for name, count in processes.items()}


def test_a_tiny_stage_in_two_processes_is_the_one_in_one(tiny):
    single, double = (load_file(folder / "stage1" / "model" / "model.safetensors") for folder in tiny.values())
    for name, weight in single.items():
        torch.testing.assert_close(double[name], weight, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    recipes = [json.loads((folder / "stage1" / "run.json").read_text())["recipe"] for folder in tiny.values()]
    assert [recipe["device_batch_size"] for recipe in recipes] == [4, 2]


def test_processes_know_of_each_other(tiny):
    facts = {path.name: json.loads(path.read_text()) for path in tiny["two"].glob("facts-*.json")}
    same = {"sum": 3, "any": [True, False]}
    assert facts == {"facts-0.json": same, "facts-1.json": same}


def test_two_processes_train_the_tower_together(tiny):
    """On the same pictures; each takes the mean over its own patches, so that the losses are not quite the same."""
    first, second = (
        [json.loads(line)["loss"] for line in (folder / "tower" / "log.jsonl").read_text().splitlines()[:2]]
        for folder in tiny.values()
    )
    assert second == pytest.approx(first, rel=0.02)
    start, after = (load_file(tiny["two"] / name / "model.safetensors") for name in ("start", "tower/model"))
    assert any("vision_tower" in name and not torch.equal(after[name], start[name]) for name in start)
