"""Measure what faster decoding costs on the bundled checkpoint: exact match against tokens per forward, and more.

Writes results/decoding.json, from which render_readme.py makes the table and the plot.
"""

import argparse
import json
import platform
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track
from transformers import SuppressTokensLogitsProcessor

from transformers_lladav import asking, scenes
from transformers_lladav.evaluation import evaluate
from transformers_lladav.files import write_text

RESULT = Path(__file__).resolve().parent / "results" / "decoding.json"
CANVAS = 32
BLOCKS = (8, 32)
STEPS = (32, 16, 8, 4, 2, 1)
SWEEPS: dict[str, tuple[float, ...]] = {
    "threshold": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
    "factor": (0.1, 0.3, 1.0, 3.0),
    "entropy_bound": (0.01, 0.1, 0.3, 1.0),
}
OBJECT = rf"an? ({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)}) at the ({'|'.join(scenes.PLACES)})"
LONG_CANVAS = 96
REPEATED = 6  # tokens in a row; no caption of the scenes repeats so many


def arms() -> list[dict[str, Any]]:
    """Settings to compare: fixed schedules from a token per step to all at once, and every adaptive rule.

    Returns:
        Arguments of `generate`.
    """
    found: list[dict[str, Any]] = []
    for block in BLOCKS:
        lengths = {"max_new_tokens": CANVAS, "block_length": block}
        found += [{**lengths, "max_denoising_steps": steps} for steps in STEPS if steps % (CANVAS // block) == 0]
        found += [{**lengths, name: value} for name, values in SWEEPS.items() for value in values]
    return found


def measure_arm(assistant: asking.Assistant, settings: dict[str, Any], questions: int, samples: int) -> dict[str, Any]:
    """What one arm gives: exact match on seen and unseen pairs, well-formed captions of ambiguous pictures.

    Args:
        assistant: a loaded checkpoint.
        settings: of `generate`.
        questions: per split.
        samples: ambiguous pictures.

    Returns:
        The settings with what they gave.
    """
    row: dict[str, Any] = {"settings": settings, "blended": measure_blended(assistant, settings, samples)}
    for split in ("test", "unseen_pairs"):
        scores = evaluate(assistant.model, assistant.processor, split, questions, 70, blind=False, **settings)
        asked = sum(score.questions for score in scores)
        caption = next(score for score in scores if score.kind == "caption")
        row[split] = {
            "questions": asked,
            "exact_match": sum(score.correct for score in scores) / asked,
            "tokens_per_forward": sum(score.tokens_per_forward * score.questions for score in scores) / asked,
            "caption_exact_match": caption.accuracy,
            "caption_tokens_per_forward": caption.tokens_per_forward,
        }
    return row


def chat_inputs(assistant: asking.Assistant, pictures: Iterable[Image.Image], question: str) -> Any:
    """Model inputs that ask every picture the same.

    Args:
        assistant: a loaded checkpoint.
        pictures: one per sample.
        question: for each of them.

    Returns:
        What the processor makes of it.
    """
    chats = [[asking.user_message([picture], question)] for picture in pictures]
    return assistant.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def measure_blended(assistant: asking.Assistant, settings: dict[str, Any], samples: int) -> dict[str, float]:
    """How often a caption of two scenes laid over each other is well formed.

    Such a picture leaves words open, so that tokens written together can contradict each other. Clear pictures leave
    nothing open, and there parallel writing costs little.

    Args:
        assistant: a loaded checkpoint.
        settings: of `generate`.
        samples: how many captions.

    Returns:
        The share of well-formed captions, and tokens per forward.
    """
    drawn = [scenes.render(scenes.make_scene("test", index), 64) for index in range(2 * samples)]
    pictures = [Image.blend(one, other, 0.5) for one, other in zip(drawn[:samples], drawn[samples:], strict=True)]
    inputs = chat_inputs(assistant, pictures, "Describe the picture.")
    output = assistant.model.generate(**inputs, **settings, return_dict_in_generate=True)
    captions = assistant.tokenizer.batch_decode(output.answers, skip_special_tokens=True)
    return {
        "samples": samples,
        "well_formed": sum(is_caption(text.strip()) for text in captions) / samples,
        "tokens_per_forward": float(output.tokens_per_forward.mean()),
    }


def is_caption(text: str) -> bool:
    """Whether a text follows the grammar of captions and puts no two objects in one place.

    Args:
        text: a caption.

    Returns:
        Whether some scene could have it.
    """
    if not re.fullmatch(rf"{OBJECT}(, {OBJECT})*( and {OBJECT})?", text) or re.search(r"\ba o|\ban [^o]", text):
        return False
    places = [found[2] for found in re.findall(OBJECT, text)]
    return len(places) == len(set(places)) <= scenes.MAX_OBJECTS


def measure_infilling(assistant: asking.Assistant, count: int) -> list[dict[str, Any]]:
    """Exact match of single words hidden in true captions, with the right and with a wrong picture.

    Args:
        assistant: a loaded checkpoint.
        count: captions per kind of word.

    Returns:
        A row per kind of word.
    """
    drawn = [scenes.make_scene("test", index) for index in range(count + 1)]
    rows = []
    for kind in ("colour", "shape", "place"):
        right = blind = tokens = forwards = 0
        for scene, other in pairwise(drawn):
            rng = random.Random(scene.seed)
            caption = scenes.ask(scene, "caption", rng)
            if caption is None:
                continue
            word = getattr(rng.choice(scene.objects), kind)
            template = hide(assistant, caption.answer, word)
            for shown, is_right in ((scene, True), (other, False)):
                given = asking.fill(assistant, scenes.render(shown, 64), caption.text, template)
                right += is_right and given.text == caption.answer
                blind += not is_right and given.text == caption.answer
            tokens += given.tokens
            forwards += given.denoising_steps
        rows.append({"hidden": kind, "captions": count, "exact_match": right / count, "wrong_picture": blind / count})
        rows[-1]["tokens_per_forward"] = tokens / forwards
    return rows


def hide(assistant: asking.Assistant, caption: str, word: str) -> str:
    """The caption with a hole of the right length where the word first stands.

    Args:
        assistant: for its tokenizer.
        caption: the whole text.
        word: one of its words, or two.

    Returns:
        The template for infilling.
    """
    before, _, after = caption.partition(f" {word}")
    whole = assistant.tokenizer(before + f" {word}", add_special_tokens=False).input_ids
    length = len(whole) - len(assistant.tokenizer(before, add_special_tokens=False).input_ids)
    return f"{before} [MASK:{length}]{after}"


def measure_repeats(assistant: asking.Assistant, settings: dict[str, Any], samples: int) -> dict[str, Any]:
    """How much a long answer repeats itself when the model is kept from ending it.

    Args:
        assistant: a loaded checkpoint.
        settings: of `generate`.
        samples: how many captions.

    Returns:
        The settings with the share of answers that hold a repeated run of tokens, and of tokens inside such runs.
    """
    pictures = [scenes.render(scenes.make_scene("test", index), 64) for index in range(samples)]
    inputs = chat_inputs(assistant, pictures, "Describe the picture.")
    output = assistant.model.generate(
        **inputs,
        **settings,
        max_new_tokens=LONG_CANVAS,
        return_dict_in_generate=True,
        logits_processor=[SuppressTokensLogitsProcessor(assistant.end_token_ids)],
    )
    shares = [repeated_share(answer.tolist()) for answer in output.answers]
    return {
        "settings": settings,
        "samples": samples,
        "answers_with_repeats": sum(share > 0 for share in shares) / samples,
        "repeated_tokens": sum(shares) / samples,
        "tokens_per_forward": float(output.tokens_per_forward.mean()),
    }


def repeated_share(tokens: list[int], size: int = REPEATED) -> float:
    """Share of tokens inside a run of `size` tokens that also stands earlier in the answer.

    Args:
        tokens: an answer.
        size: length of a run.

    Returns:
        0 to 1.
    """
    seen: set[tuple[int, ...]] = set()
    repeated: set[int] = set()
    for start in range(len(tokens) - size + 1):
        run = tuple(tokens[start : start + size])
        if run in seen:
            repeated.update(range(start, start + size))
        seen.add(run)
    return len(repeated) / max(len(tokens), 1)


def main() -> int:
    """Measure everything and write the result file.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--questions", type=int, default=700, help="questions per split and arm (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, default=200, help="captions in the other parts (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file (default: %(default)s)")
    options = parser.parse_args()
    assistant, console = asking.load(device="cpu"), Console(stderr=True)

    def progress(items: list[Any], what: str) -> Iterable[Any]:
        return track(items, description=what, console=console)

    long = [
        {"block_length": 8, "max_denoising_steps": steps, **rule}
        for steps in (LONG_CANVAS, LONG_CANVAS // 4)
        for rule in ({}, {"no_repeat_ngram_size": REPEATED}, {"no_repeat_ngram_size": 4})
    ]
    document = {
        "command": " ".join(["python model_cards/measure_decoding.py", *sys.argv[1:]]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "machine": {"processor": platform.machine(), "system": platform.system(), "device": "cpu"},
        "versions": {name: version(name) for name in ("torch", "transformers", "transformers_lladav")},
        "arms": [
            measure_arm(assistant, arm, options.questions, options.samples) for arm in progress(arms(), "decoding")
        ],
        "infilling": measure_infilling(assistant, options.samples),
        "repeats": [measure_repeats(assistant, arm, min(options.samples, 50)) for arm in progress(long, "repeats")],
    }
    write_text(options.output, json.dumps(document, indent=1) + "\n")
    console.print(f"Result written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
