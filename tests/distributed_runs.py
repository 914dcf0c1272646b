"""What the processes of a distributed test do: `torchrun distributed_runs.py TASK FOLDER`, with FOLDER/task.json.

Process 0 leaves what the test looks at in FOLDER.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, DistributedConfig

from transformers_lladav.processes import any_process, summed
from transformers_lladav.recipe_changes import change_recipe
from transformers_lladav.recipes import find_recipe
from transformers_lladav.run_settings import CHECKPOINTS, RunSettings
from transformers_lladav.tiny_model import TinySizes
from transformers_lladav.tiny_stages import STAGES, train_stages
from transformers_lladav.train import Run

torch.set_num_threads(1)
RANK = int(os.environ.get("RANK", "0"))


def shard_on_cpus() -> None:
    """Let accelerate shard on CPUs, which PyTorch can and accelerate reserves for accelerators.

    Processes on CPUs are taken for processes on GPUs at the one place where accelerate decides; the device stays the
    CPU, and everything behind that place is what runs on GPUs, with gloo in the place of NCCL.
    """
    original = AcceleratorState.__init__

    def decide(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        if not AcceleratorState._shared_state:  # not decided yet
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    AcceleratorState.__init__ = decide


def train(folder: Path, task: dict[str, Any]) -> None:
    """Run recipes to the end, one after the other; the last one a second time from its middle, as after a crash."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpus()
    facts = {}
    for name, changes in task["recipes"].items():
        recipe = change_recipe(find_recipe(name), changes)
        settings = RunSettings(
            model=task["model"],
            data=task["data"],
            eval_data=task["eval_data"],
            output=folder / name,
            device="cpu" if torch.accelerator.is_available() else "auto",  # which then finds out by itself
            report_to="none",
        )
        outcome = Run(settings, recipe).train()
        if name == task.get("again"):
            _keep_aside(outcome.product, settings.output / CHECKPOINTS / f"checkpoint-{outcome.step}")
            outcome = Run(settings, recipe).train()
        state = PartialState()
        facts[name] = {
            "kind": state.distributed_type.value,
            "processes": state.num_processes,
            "device": state.device.type,
            "product": str(outcome.product),
        }
    if RANK == 0:
        (folder / "facts.json").write_text(json.dumps(facts))


def tiny(folder: Path, task: dict[str, Any]) -> None:
    """The first stages of the tiny model, two steps each, both from nothing."""
    few = {"max_steps": 2, "global_batch_size": 4, "checkpoint_every": 1}
    stages = [replace(stage, recipe=replace(stage.recipe, **few)) for stage in STAGES[:2]]
    sizes = TinySizes(vision_hidden=16, vision_layers=1, text_hidden=16, text_layers=1, heads=2, mlp_ratio=1)
    for stage in stages:
        train_stages(folder, sizes, [stage], workers=0)
    facts = {"sum": summed(RANK + 1), "any": [any_process(RANK == 0), any_process(False)]}
    (folder / f"facts-{RANK}.json").write_text(json.dumps(facts))


def _keep_aside(product: Path, checkpoint: Path) -> None:
    """Put the result and the last checkpoint of a run out of sight."""
    PartialState().wait_for_everyone()
    if RANK == 0:
        product.rename(product.with_name(product.name + "-first"))
        shutil.rmtree(checkpoint)
    PartialState().wait_for_everyone()


def infer(folder: Path, task: dict[str, Any]) -> None:
    """Logits and answers of every model that the task names; its layers are spread over all processes."""
    results = {}
    for name, source in task["models"].items():
        plan = {"distributed_config": DistributedConfig(tp_plan="auto")} if "WORLD_SIZE" in os.environ else {}
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, **plan).eval()
        inputs = AutoProcessor.from_pretrained(source).apply_chat_template(
            task["chat"], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            results[f"{name}/logits"] = model(**inputs).logits
        results[f"{name}/answer"] = model.generate(**inputs, **task["settings"])
        attention = model.model.language_model.layers[0].self_attn
        for part in ("q_proj", "k_proj", "o_proj"):
            weight = getattr(attention, part).weight
            local = weight.to_local() if hasattr(weight, "to_local") else weight
            results[f"{name}/{part}"] = torch.tensor(local.shape)
    if RANK == 0:
        save_file({name: tensor.contiguous() for name, tensor in results.items()}, folder / "results.safetensors")


if __name__ == "__main__":
    work = Path(sys.argv[2])
    {"train": train, "infer": infer, "tiny": tiny}[sys.argv[1]](work, json.loads((work / "task.json").read_text()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
