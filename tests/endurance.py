"""Many generations of mixed shapes on one model: does memory grow, do tensors or threads stay behind.

python tests/endurance.py --generations 1000 --output model_cards/results/endurance.json
"""

import argparse
import ctypes
import gc
import json
import os
import random
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from transformers_lladav import asking
from transformers_lladav.files import write_text
from transformers_lladav.shape_scenes import make_scene, render_scene

QUESTIONS = (
    "How many shapes are there?",
    "Describe the picture.",
    "What is at the top left?",
    "Is there a red star? Look at all of the picture before you answer, row by row, and say yes or no.",
)
KINDS = ("plain", "sampled", "blocks", "preset", "cached", "guided", "static", "infill", "streamed", "cancelled")
WARM_UP = 0.3  # of all generations: every kind with every batch size has been there by then


class CancelledError(Exception):
    """Raised from a callback in the middle of an answer."""


class _Quiet(TextStreamer):
    """Drafts and blocks for nobody."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Say nothing."""

    def put_draft(self, value: torch.Tensor) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Job:
    """A generation.

    Attributes:
        kind: one of `KINDS`.
        seed: decides questions, pictures, lengths and what is drawn.
    """

    kind: str
    seed: int

    def run(self, assistant: asking.Assistant) -> list[list[int]]:
        """Generate.

        Args:
            assistant: model and processor.

        Returns:
            The tokens of the answers; nothing if it was cancelled.
        """
        rng = random.Random(self.seed)
        options: dict[str, Any] = {"max_new_tokens": 8 * rng.randint(1, 3), "block_length": 8, "threshold": 0.9}
        if self.kind == "infill":
            chat = [*_chat(rng), {"role": "assistant", "content": "[MASK:3] triangle at the [MASK:2] left"}]
            inputs = assistant.processor.infilling_inputs(chat)
            return _tokens(assistant, inputs, {"infill": True})
        batch = 1 if self.kind == "streamed" else rng.randint(1, 4)
        inputs = assistant.inputs([_chat(rng) for _ in range(batch)])
        if self.kind == "sampled":
            options |= {"temperature": 0.7, "generator": torch.Generator().manual_seed(self.seed)}
        elif self.kind == "preset":
            options = {"preset": rng.choice(["balanced", "fast", "chartqa"])}
        elif self.kind == "cached":
            options |= {"use_cache": "dual", "prompt_refresh_interval": 2}
        elif self.kind == "guided":
            options |= {"guidance_scale": 1.5}
        elif self.kind == "static":
            options |= {"cache_implementation": "static", "disable_compile": True}
        elif self.kind == "streamed":
            options["streamer"] = _Quiet(assistant.tokenizer)
        elif self.kind == "cancelled":
            options["callback_on_step_end"] = _cancel
        try:
            return _tokens(assistant, inputs, options)
        except CancelledError:
            return []


def _cancel(step: Any) -> None:
    raise CancelledError


def _chat(rng: random.Random) -> list[dict[str, Any]]:
    """A question about no, one or two pictures of any shape."""
    pictures = [
        render_scene(make_scene("test", rng.randrange(50)), 64).resize((rng.choice((48, 96)), rng.choice((48, 96))))
        for _ in range(rng.choice((0, 1, 1, 2)))
    ]
    return [asking.user_message(pictures, rng.choice(QUESTIONS))]


def _tokens(assistant: asking.Assistant, inputs: Any, options: dict[str, Any]) -> list[list[int]]:
    output = assistant.model.generate(**inputs, tokenizer=assistant.tokenizer, return_dict_in_generate=True, **options)
    return [answer.tolist() for answer in output.answers]


def jobs(count: int) -> list[Job]:
    """Every kind in turn, no two with the same questions.

    Args:
        count: how many.

    Returns:
        The jobs.
    """
    return [Job(KINDS[number % len(KINDS)], number) for number in range(count)]


def measure() -> dict[str, Any]:
    """What the process holds: bytes in memory (None where the system does not tell), tensors that are alive, threads.

    Memory that the allocator keeps for later is given back first, as far as the C library can.
    """
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    statm = Path("/proc/self/statm")
    held = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if statm.exists() else None
    alive = sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())
    return {"bytes": held, "tensors": alive, "threads": threading.active_count()}


def endure(assistant: asking.Assistant, count: int) -> dict[str, Any]:
    """Generate again and again.

    Args:
        assistant: model and processor.
        count: how many times.

    Returns:
        What was held after the warm-up, at ten times after it, and how much more at the end.
    """
    todo, warm = jobs(count), int(count * WARM_UP)
    every = max(1, (count - warm) // 10)
    points = []
    for number, job in enumerate(todo, start=1):
        job.run(assistant)
        if number >= warm and (number - warm) % every == 0:
            points.append({"generations": number, **measure()})
    first, last = points[0], points[-1]
    return {
        "command": f"python tests/endurance.py --generations {count}",
        "generations": count,
        "kinds": list(KINDS),
        "points": points,
        "growth_of_bytes": None if first["bytes"] is None else round(last["bytes"] / first["bytes"] - 1, 5),
        "more_tensors": last["tensors"] - first["tensors"],
        "more_threads": last["threads"] - first["threads"],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    document = endure(asking.load(device="cpu"), options.generations)
    print(json.dumps({name: value for name, value in document.items() if name != "points"}))  # noqa: T201
    if options.output:
        write_text(options.output, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
