"""How fast answers are written: ratios against the official loop, and how time grows with answer, prompt and batch.

Weights are random and nothing is downloaded. Such a model is never sure of anything, so that the number of tokens a
step writes is forced by the schedule; what a threshold gains is measured on trained checkpoints. On CPUs sizes are
small, in the proportions of LLaDA-V 8B, and ratios are all that counts: arms take turns within a process, and medians
of several rounds are compared.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import CompileConfig

from .bench_loops import autoregressive_model, official_loop, write_autoregressively
from .configuration_lladav import LladaVConfig
from .modeling_lladav import LladaVForMaskedDiffusion
from .presets_lladav import PRESETS

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sizes:
    """A language model and what it is asked.

    Attributes:
        hidden: width.
        layers: how many.
        heads: of attention.
        feed_forward: width of the MLP.
        vocabulary: rows of the head.
        prompt: tokens, pictures included.
        answer: tokens.
        batch: prompts that are answered together.
        tail: tokens of the prompt that are run with the answer where the rest is remembered.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    prompt: int
    answer: int
    batch: int = 1
    tail: int = 64

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        return 4 * self.hidden**2 + 3 * self.hidden * self.feed_forward

    def pass_flops(self, positions: int, keys: int, wanted: int) -> float:
        """Arithmetic of a forward pass.

        Args:
            positions: that are run, in each sequence.
            keys: that they see.
            wanted: positions whose logits are made; the last layer runs queries and MLP for these only.

        Returns:
            Floating point operations, a multiplication and an addition as two.
        """
        per_layer = 2 * positions * self.layer_parameters + 4 * positions * keys * self.hidden
        keys_only = 4 * positions * self.hidden**2
        last = 2 * wanted * self.layer_parameters + 4 * wanted * keys * self.hidden
        head = 2 * wanted * self.hidden * self.vocabulary
        return self.batch * ((self.layers - 1) * per_layer + keys_only + last + head)


# A large picture and a question, and an answer of the official demo's length.
LLADA_V_8B = Sizes(4096, 32, 32, 12288, 126464, prompt=3760, answer=128)
# The same proportions: a head of 7 % of the layers' parameters, 29 tokens of prompt to one of the answer, and as much
# of the time in attention.
SMALL = Sizes(768, 6, 12, 2304, 4433, prompt=700, answer=24, tail=12)
SIZES = {"small": SMALL, "8b": LLADA_V_8B}


@dataclass(frozen=True)
class Arm:
    """Something that is timed.

    Attributes:
        name: of it.
        description: one line.
        per_step: tokens a step writes; 0 for a model that has no steps.
        settings: of `generate`, beyond lengths.
        kind: "ours", "official" or "autoregressive".
        grows: whether it is also timed with more and more of everything.
        gpu_only: whether it is left out on CPUs unless it is named.
    """

    name: str
    description: str
    per_step: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = "ours"
    grows: bool = False
    gpu_only: bool = False


REMEMBERED, ONCE = (
    {"prompt_refresh_interval": PRESETS[name].settings["prompt_refresh_interval"]} for name in ("balanced", "fast")
)
COMPILED: dict[str, Any] = {"cache_implementation": "static", "compile_config": CompileConfig()}
ARMS = (
    Arm("official", "the official loop, a token per step", kind="official"),
    Arm("exact", "the same tokens without its waste: preset exact"),
    Arm("parallel", "four tokens per step", 4, grows=True),
    Arm("balanced", "the same, the prompt run in every second step", 4, REMEMBERED, grows=True),
    Arm("fast", "the same, the prompt run once", 4, ONCE, grows=True),
    Arm("compiled", "the same in static shapes, its steps compiled", 4, ONCE | COMPILED, gpu_only=True),
    Arm("autoregressive", "a Llama of the same sizes with its cache, a token per pass", 0, kind="autoregressive"),
    Arm("autoregressive_compiled", "the same, compiled", 0, COMPILED, kind="autoregressive", gpu_only=True),
)


def find_arm(name: str) -> Arm:
    """Look up an arm.

    Args:
        name: of it.

    Returns:
        The arm.

    Raises:
        ValueError: for an unknown name.
    """
    for arm in ARMS:
        if arm.name == name:
            return arm
    raise ValueError(f"there is no arm {name!r}; choose among {', '.join(arm.name for arm in ARMS)}")


def growth_sizes(sizes: Sizes) -> dict[str, list[Sizes]]:
    """More and more of one thing at a time.

    Args:
        sizes: where it begins; what does not grow stays.

    Returns:
        For "answer", "prompt" and "batch", sizes with half to eight times as much; batches from 1.
    """
    doubled = [0.5, 1, 2, 4, 8]
    return {
        "answer": [replace(sizes, answer=int(sizes.answer * times)) for times in doubled],
        "prompt": [replace(sizes, prompt=int(sizes.prompt * times)) for times in doubled],
        "batch": [replace(sizes, batch=count) for count in (1, 2, 4, 8, 16, 32)],
    }


@dataclass
class Timing:
    """What an arm took.

    Attributes:
        arm: its name.
        sizes: of what was run.
        seconds: of every round.
        forwards: passes of the model for an answer.
        whole_forwards: those of them that ran the prompt.
        flops: arithmetic of an answer; None where it is not worked out.
        peak_memory: bytes on a GPU.
    """

    arm: str
    sizes: Sizes
    seconds: list[float] = field(default_factory=list)
    forwards: int = 0
    whole_forwards: int = 0
    flops: float | None = None
    peak_memory: int | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of all answers together."""
        return self.sizes.batch * self.sizes.answer / self.median


class Bench:
    """Models with random weights, made on the device.

    Args:
        device: "cpu" or "cuda".
        dtype: of the weights.
        sizes: of the models; prompt, answer and batch may differ from run to run.
        seed: of weights and prompts.
    """

    def __init__(self, device: str, dtype: torch.dtype, sizes: Sizes, seed: int = 0) -> None:
        self.device, self.dtype, self.sizes, self.seed = device, dtype, sizes, seed
        torch.manual_seed(seed)
        self.model = build_model(sizes, device, dtype)
        self.twin: Any = None

    def prompts(self, sizes: Sizes) -> torch.Tensor:
        """(batch, prompt) random ids."""
        generator = torch.Generator().manual_seed(self.seed)
        ordinary = self.sizes.vocabulary - 8
        return torch.randint(ordinary, (sizes.batch, sizes.prompt), generator=generator).to(self.device)

    def run(self, arm: Arm, sizes: Sizes) -> tuple[float, Any]:
        """Answer once.

        Args:
            arm: how.
            sizes: of prompt, answer and batch.

        Returns:
            Seconds, and what came out.
        """
        prompts = self.prompts(sizes)
        if arm.kind == "autoregressive" and self.twin is None:
            self.twin = autoregressive_model(self.model.config.text_config, self.device, self.dtype)
        output: Any
        wait(self.device)
        began = time.perf_counter()
        if arm.kind == "autoregressive":
            output = write_autoregressively(self.twin, prompts, sizes.answer, **arm.settings)
        elif arm.kind == "official":
            output = [
                official_loop(self.model, row[None], sizes.answer, sizes.answer, sizes.answer) for row in prompts
            ]
        else:
            output = self.model.generate(
                prompts,
                max_new_tokens=sizes.answer,
                max_denoising_steps=-(-sizes.answer // arm.per_step),
                live_prompt_length=sizes.tail,
                return_dict_in_generate=True,
                **arm.settings,
            )
        wait(self.device)
        return time.perf_counter() - began, output

    def measure(
        self, arms: Sequence[Arm], sizes: Sequence[Sizes], rounds: int, on_progress: Progress | None = None
    ) -> list[Timing]:
        """Time arms in turns, after one round that does not count.

        Args:
            arms: what is timed.
            sizes: each arm is timed with each of them.
            rounds: that count.
            on_progress: is told how many runs are done and how many there are.

        Returns:
            A timing for every arm and size.
        """
        runs = [(arm, size, Timing(arm.name, size)) for size in sizes for arm in arms]
        done, total = 0, len(runs) * (rounds + 1)
        for number in range(rounds + 1):
            for arm, size, timing in runs:
                if self.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds, output = self.run(arm, size)
                if number == 0:
                    _count(arm, size, output, timing)
                else:
                    timing.seconds.append(seconds)
                if self.device == "cuda":
                    timing.peak_memory = torch.cuda.max_memory_allocated()
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
        return [timing for _, _, timing in runs]


def wait(device: str) -> None:
    """Let a device finish what it was given.

    Args:
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        torch.cuda.synchronize()


def _count(arm: Arm, sizes: Sizes, output: Any, timing: Timing) -> None:
    """Passes and arithmetic of an answer."""
    length = sizes.prompt + sizes.answer
    if arm.kind == "ours":
        timing.forwards, timing.whole_forwards = int(output.denoising_steps[0]), int(output.whole_forwards[0])
        live = timing.forwards - timing.whole_forwards
        timing.flops = timing.whole_forwards * sizes.pass_flops(length, length, sizes.answer)
        timing.flops += live * sizes.pass_flops(sizes.answer + min(sizes.tail, sizes.prompt), length, sizes.answer)
    else:
        timing.forwards = sizes.answer
        timing.whole_forwards = sizes.answer if arm.kind == "official" else 1
        if arm.kind == "official":
            timing.flops = sizes.answer * sizes.pass_flops(length, length, length)


def build_model(sizes: Sizes, device: str, dtype: torch.dtype) -> LladaVForMaskedDiffusion:
    """A LLaDA-V with random weights that never ends an answer by itself.

    Args:
        sizes: of its language model; the vision tower is small, since prompts are of text.
        device: where the weights are made.
        dtype: of them.

    Returns:
        The model.
    """
    mask = sizes.vocabulary - 1
    config = LladaVConfig(
        text_config={
            "vocab_size": sizes.vocabulary, "hidden_size": sizes.hidden, "intermediate_size": sizes.feed_forward,
            "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads, "max_position_embeddings": 32768,
            "bos_token_id": mask - 1, "eos_token_id": mask - 2, "pad_token_id": mask - 2,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14, "vision_use_head": False,
        },
        image_grid_pinpoints=[[28, 28]],
        mask_token_id=mask, image_token_id=mask - 3, video_token_id=mask - 4, output_vocab_size=sizes.vocabulary - 4,
        suppressed_token_ids=[mask - 1, mask - 2],
    )  # fmt: skip
    with torch.device(device):
        model = LladaVForMaskedDiffusion._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = []
    return model.eval()
