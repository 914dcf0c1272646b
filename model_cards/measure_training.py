"""Measure steps of LoRA and QLoRA on a model of LLaDA-V's shapes with random weights, or work out what fits where.

Each arm runs beside a plain implementation that computes the logits of every position in float32, as the official code
does; arms of a recipe take turns in one process. Writes results/training_speed.json, on a GPU. `--estimate` writes
results/training_memory.json instead, from which render_readme.py makes the table: arithmetic, nothing is measured.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion
from transformers_lladav.answering_memory import POSITIONS, answering_rows
from transformers_lladav.files import write_text
from transformers_lladav.quantization import nf4_config
from transformers_lladav.recipes import RECIPES, Recipe
from transformers_lladav.trainable import parameter_groups, prepare_trainable
from transformers_lladav.training_memory import CARDS, CONTEXT_BYTES, LENGTHS, NODE, NODE_CARD, estimate, fits

RESULTS = Path(__file__).resolve().parent / "results"
MEASURED = ("lora", "qlora")
ESTIMATED = ("lora", "qlora", "projector", "full")
SMALL_LENGTHS = {96: 2, 192: 5}
HIDDEN_SHARE = 0.5
WARMUP_STEPS = 2  # the second is the first with AdamW's moments in place


class LiveMemory(TorchDispatchMode):
    """Counts bytes of tensors that are alive, and the most there were, where no device counts them.

    Args:
        known: tensors that are there already and are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        """Add a storage until it dies; views share theirs."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to take a step.

    Attributes:
        tokens: of the sample.
        tiles: of its pictures, one each.
        checkpointing: compute activations again on the way back.
        plain: all logits in float32, instead of the model's own loss.
    """

    tokens: int
    tiles: int
    checkpointing: bool
    plain: bool


def small_config() -> LladaVConfig:
    """A model for a CPU, with a vocabulary that outweighs its width as the real one does."""
    return LladaVConfig(
        text_config={
            "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
            "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
        },
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "vision_use_head": False,
        },
        image_token_id=4000, video_token_id=4001, mask_token_id=3999, output_vocab_size=3999,
        suppressed_token_ids=[1, 3], image_grid_pinpoints=[],
    )  # fmt: skip


def make_sample(config: LladaVConfig, tokens: int, tiles: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A noised sample: pictures of a tile each, then text of which half is hidden.

    Args:
        config: of the model.
        tokens: of the sample.
        tiles: pictures.
        device: where the tensors lie.

    Returns:
        What the model takes.

    Raises:
        ValueError: if the pictures leave no room for text.
    """
    picture = tiles * (config.patches_per_side**2 + config.single_tile_newline)
    if picture >= tokens:
        raise ValueError(f"{tiles} pictures have {picture} tokens, which leaves no text in {tokens}; give fewer")
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(4, config.mask_token_id, (1, tokens), generator=generator)
    hidden = torch.rand(1, tokens, generator=generator) < HIDDEN_SHARE
    hidden[:, :picture], hidden[:, -1] = False, True
    side = config.vision_config.image_size
    sample = {
        "input_ids": torch.where(hidden, config.mask_token_id, ids),
        "labels": torch.where(hidden, ids, -100),
        "loss_weights": hidden / (HIDDEN_SHARE * (tokens - picture)),
        "pixel_values": torch.randn(tiles, 3, side, side, generator=generator),
        "image_sizes": torch.full((tiles, 2), side),
        "image_tile_counts": torch.ones(tiles, dtype=torch.long),
    }
    sample["input_ids"][:, :picture] = config.image_token_id
    return {name: tensor.to(device) for name, tensor in sample.items()}


def own_loss(model: Any, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's loss: the head runs on hidden positions, some at a time."""
    return model(**sample).loss


def plain_loss(model: Any, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same number from the logits of all positions in float32, as the official code has it."""
    inputs = {name: tensor for name, tensor in sample.items() if name not in ("labels", "loss_weights")}
    logits = model(**inputs).logits.float()  # (1, tokens, vocabulary)
    hidden = sample["labels"] != -100
    losses = F.cross_entropy(logits[hidden], sample["labels"][hidden], reduction="none")
    return (losses * sample["loss_weights"][hidden]).sum()


class Bench:
    """A model that is trained by a recipe, and what a step of it costs.

    Args:
        config: of the model.
        recipe: the recipe, whose checkpointing is that of the arms.
        device: where it runs.
        scratch: a folder with room for the weights; four-bit ones are made on the way in.
    """

    def __init__(self, config: LladaVConfig, recipe: Recipe, device: torch.device, scratch: Path) -> None:
        self.config, self.recipe, self.device = config, recipe, device
        torch.manual_seed(0)
        with device:
            self.base: Any = LladaVForMaskedDiffusion._from_config(config, dtype=torch.bfloat16)
        if recipe.quantization is not None:
            self.base.save_pretrained(scratch)
            self.base = None  # its memory goes before the other's comes
            options = {"quantization_config": nf4_config(torch.bfloat16), "device_map": {"": device}}
            self.base = LladaVForMaskedDiffusion.from_pretrained(scratch, dtype=torch.bfloat16, **options)
        self.model = prepare_trainable(self.base, recipe).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, recipe), fused=True)
        self.samples: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def step(self, arm: Arm) -> float:
        """Take a step and return its loss."""
        sizes = (arm.tokens, arm.tiles)
        if sizes not in self.samples:
            self.samples[sizes] = make_sample(self.config, *sizes, self.device)
        loss_of: Callable[..., torch.Tensor] = plain_loss if arm.plain else own_loss
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = loss_of(self.model, self.samples[sizes])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # as in accumulation, gradients stay where they are
        return loss.item()

    def measure(self, arm: Arm) -> dict[str, float]:
        """Seconds, peak bytes and loss of a step; on a CPU memory is counted in a second one."""
        self.checkpoint(arm.checkpointing)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        loss = self.step(arm)  # reads the loss, which waits for the device
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else self.count(arm)
        return {"seconds": seconds, "peak_bytes": peak, "loss": loss}

    def count(self, arm: Arm) -> int:
        """Peak bytes of a step on a CPU, with all that was there before."""
        kept = [*self.model.parameters(), *self.model.buffers()]
        kept += [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        kept += [value for state in self.optimizer.state.values() for value in state.values()]
        sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
        with LiveMemory([*kept, *self.samples[arm.tokens, arm.tiles].values()]) as memory:
            self.step(arm)
        return sum(sizes.values()) + memory.peak

    def checkpoint(self, on: bool) -> None:
        """Turn activation checkpointing on or off."""
        name = "activation" if hasattr(self.base, "activation_checkpointing_enable") else "gradient"  # before 5.20
        if on:
            options = {f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
            getattr(self.base, f"{name}_checkpointing_enable")(**options)
        else:
            getattr(self.base, f"{name}_checkpointing_disable")()


def measure_recipe(bench: Bench, arms: list[Arm], repeats: int) -> list[dict[str, Any]]:
    """Run all arms in turn, several times.

    Args:
        bench: the model.
        arms: what is compared.
        repeats: rounds that count; steps before them do not.

    Returns:
        Medians of each arm, or that it ran out of memory.
    """
    runs: dict[Arm, list[dict[str, float]]] = {arm: [] for arm in arms}
    failed: set[Arm] = set()
    for turn in range(WARMUP_STEPS + repeats):
        for arm in arms:
            if arm in failed:
                continue
            try:
                found = bench.measure(arm)
            except torch.cuda.OutOfMemoryError:
                failed.add(arm)
                bench.optimizer.zero_grad(set_to_none=False)
                torch.cuda.empty_cache()
                continue
            if turn >= WARMUP_STEPS:
                runs[arm].append(found)
    rows = []
    for arm, found in runs.items():
        run = dataclasses.replace(bench.recipe, gradient_checkpointing=arm.checkpointing, precision="bf16")
        sum_of_parts = estimate(bench.config, run, arm.tokens, arm.tiles)
        row = {"recipe": bench.recipe.name, **dataclasses.asdict(arm), "out_of_memory": arm in failed}
        if arm not in failed:
            row |= {
                "seconds": statistics.median(one["seconds"] for one in found),
                "peak_bytes": max(one["peak_bytes"] for one in found),
                "loss": found[0]["loss"],
                "runs": found,
            }
        if not arm.plain:
            row["computed_bytes"] = sum_of_parts.total - sum_of_parts.allowance
        rows.append(row)
    return rows


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time and memory of the plain way over ours, for each pair of arms that ran.

    Args:
        rows: from `measure_recipe`.

    Returns:
        A row for each pair.
    """
    settings = ("recipe", "tokens", "checkpointing")
    ours = {tuple(row[name] for name in settings): row for row in rows if not row["plain"]}
    pairs = []
    for row in rows:
        other = ours[tuple(row[name] for name in settings)]
        if row["plain"] and not row["out_of_memory"] and not other["out_of_memory"]:
            times, peaks = row["seconds"] / other["seconds"], row["peak_bytes"] / other["peak_bytes"]
            pairs.append({name: row[name] for name in settings} | {"seconds": times, "peak_bytes": peaks})
    return pairs


def measure(config: LladaVConfig, lengths: dict[int, int], device: torch.device, repeats: int, scratch: Path) -> Any:
    """Measure the recipes, one after the other.

    Args:
        config: of the model.
        lengths: tokens of a sample, with the number of its pictures.
        device: where to run.
        repeats: rounds.
        scratch: a folder with room for the weights.

    Returns:
        The result document, but for the command.
    """
    switches = product(lengths.items(), (True, False), (False, True))
    arms = [Arm(tokens, tiles, checkpointing, plain) for (tokens, tiles), checkpointing, plain in switches]
    rows, left_out = [], {}
    for name in MEASURED:
        if RECIPES[name].quantization is not None and find_spec("bitsandbytes") is None:
            left_out[name] = "bitsandbytes is not installed"
            continue
        rows += measure_recipe(Bench(config, RECIPES[name], device, scratch), arms, repeats)
    return {"arms": rows, "plain_over_ours": ratios(rows), "left_out": left_out, "machine": machine(device)}


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    packages = [name for name in ("torch", "transformers", "peft", "bitsandbytes") if find_spec(name)]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def estimated() -> dict[str, Any]:
    """The document of what fits where: computed from shapes, not measured."""
    return {
        "command": "python model_cards/measure_training.py --estimate",
        "computed_not_measured": True,
        "context_bytes": CONTEXT_BYTES,
        "cards": CARDS,
        "node": {"devices": NODE, "card": NODE_CARD},
        "rows": [dataclasses.asdict(row) for name in ESTIMATED for row in fits(LladaVConfig(), RECIPES[name])],
        "answering": answering_rows(LladaVConfig()),
        "positions": POSITIONS,
    }


def main(argv: list[str] | None = None) -> None:
    """The command line.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--estimate", action="store_true", help="measure nothing; work out what fits on which card")
    parser.add_argument("--small", action="store_true", help="a small model on the CPU: only the ratios say something")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each arm that count (default: %(default)s)")
    parser.add_argument(
        "--scratch", type=Path, help="where to write weights; the system's temporary folder by default"
    )
    parser.add_argument("--output", type=Path, help="result file; by default in model_cards/results, not with --small")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}; give at least 1")
    if arguments.small and arguments.output is None:
        parser.error("--small is no result for the README; say with --output where to write it")
    if arguments.estimate:
        document, name = estimated(), "training_memory.json"
    else:
        if not arguments.small and not torch.cuda.is_available():
            parser.error("there is no CUDA device; give --small for a CPU, or --estimate")
        device = torch.device("cpu" if arguments.small else "cuda")
        config, lengths = (small_config(), SMALL_LENGTHS) if arguments.small else (LladaVConfig(), LENGTHS)
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            document = measure(config, lengths, device, arguments.repeats, Path(scratch))
        small = " --small" if arguments.small else ""
        document["command"] = f"python model_cards/measure_training.py{small} --repeats {arguments.repeats}"
        name = "training_speed.json"
    write_text(arguments.output or RESULTS / name, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
