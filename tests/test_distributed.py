"""Two processes do what one does: training with DDP and FSDP2, tensor-parallel inference. For real, on CPUs with gloo."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformers_lladav import BUNDLED_CHECKPOINT, LladaVForMaskedDiffusion, LladaVProcessor, scenes
from transformers_lladav.batches import TrainingBatches
from transformers_lladav.launching import find_config
from transformers_lladav.samples import Numbered

pytest.importorskip("accelerate")
pytest.importorskip("peft")

SCRIPT = Path(__file__).parent / "distributed_runs.py"
SECONDS = 240  # after which processes are killed; they need about 20
PROCESSES = 2
SAMPLES, STEPS, STEP_SAMPLES, BATCH = 24, 6, 8, 2


def run(arguments, folder, task):
    """Run the script, and leave no process behind whatever happens."""
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps(task))
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments, str(folder)],
            env={**environment, **one_thread},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = f"no end after {SECONDS} s"
        finally:
            _end_group(process)
    assert code == 0, f"{code}\n{(folder / 'output.txt').read_text()[-6000:]}"
    return folder


def _end_group(process):
    """End what is left of a process and its children, which torchrun puts into groups of their own."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--sid", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    for pid in map(int, children):
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def free_port():
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def torchrun(task):
    return ["-m", "torch.distributed.run", f"--nproc_per_node={PROCESSES}", f"--master_port={free_port()}"] + [
        str(SCRIPT),
        task,
    ]


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
        scene = scenes.make_scene("train", number)
        question = scenes.questions(scene, random.Random(number))[number % 4]
        record = {"question": question.text, "answer": question.answer}
        if shows_a_picture(number):
            scenes.render(scene).save(folder / f"{number}.png")
            record["image"] = f"{number}.png"
        records.append(json.dumps(record))
    (folder / "train.jsonl").write_text("\n".join(records) + "\n")
    (folder / "held_out.jsonl").write_text("\n".join(records[:6]) + "\n")
    return folder


CHANGES = [
    f"max_steps={STEPS}",
    f"global_batch_size={STEP_SAMPLES}",
    f"device_batch_size={BATCH}",
    "learning_rate=1e-3",
    "checkpoint_every=3",
    "eval_answers=2",
    "max_length=512",
    "max_grad_norm=4.0",  # below all norms here, so that clipping is part of what is compared
]
RECIPES = {"lora": [*CHANGES, "lora.rank=4"], "full": CHANGES}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, float32_checkpoint, data):
    """Runs both recipes in one process, with DDP, or with FSDP2; each once."""
    folder, done = tmp_path_factory.mktemp("runs"), {}
    launchers = {
        "one": lambda: [str(SCRIPT), "train"],
        "ddp": lambda: torchrun("train"),
        "fsdp2": lambda: accelerate_launch("eight_gpus_fsdp2", "train"),
    }

    def get(kind):
        if kind not in done:
            task = {
                "model": str(float32_checkpoint),
                "data": str(data / "train.jsonl"),
                "eval_data": str(data / "held_out.jsonl"),
                "recipes": RECIPES,
            }
            done[kind] = run(launchers[kind](), folder / kind, task)
        return done[kind]

    return get


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
def test_two_processes_train_as_one_does(trained, kind, recipe):
    one, two = trained("one"), trained(kind)
    facts = [json.loads((folder / "facts.json").read_text())[recipe] for folder in (one, two)]
    assert [fact["kind"] for fact in facts] == ["NO", {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}[kind]]
    assert [fact["processes"] for fact in facts] == [1, PROCESSES]
    assert [fact["device"] for fact in facts] == ["cpu", "cpu"]
    for name in ("loss", "grad_norm", "eval_loss"):
        expected, found = figures(one, recipe, name), figures(two, recipe, name)
        assert set(expected) == ({3, 6} if name == "eval_loss" else set(range(1, STEPS + 1)))
        assert found == pytest.approx(expected, rel=1e-5)
    assert min(figures(one, recipe, "grad_norm").values()) > 4  # all were clipped


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_end_with_the_weights_of_one(trained, kind, recipe, float32_checkpoint):
    one, two = weights(trained("one"), recipe), weights(trained(kind), recipe)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        # Softmax does not see what a key's bias adds to all scores alike: its gradient is rounding, and AdamW makes
        # full steps of that.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")
    before = load_file(float32_checkpoint / "model.safetensors")
    changed = {name for name, tensor in one.items() if name not in before or not torch.equal(tensor, before[name])}
    assert len(changed) >= len(one) - 4  # but for rows and biases that nothing here reads
