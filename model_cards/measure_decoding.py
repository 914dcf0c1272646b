"""Measure what faster decoding costs on the bundled checkpoint: exact match against tokens per forward, and more.

Writes results/decoding.json, from which render_readme.py makes the table and the plot.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from circumstances import circumstances
from PIL import Image
from rich.console import Console
from rich.progress import track
from transformers import SuppressTokensLogitsProcessor

from transformers_lladav import asking
from transformers_lladav.eval_asking import Asking
from transformers_lladav.eval_results import ALL
from transformers_lladav.eval_run import measure
from transformers_lladav.eval_tasks import open_tasks
from transformers_lladav.files import write_text
from transformers_lladav.scene_questions import ASKERS
from transformers_lladav.shape_scenes import (
    COLOURS,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    Scene,
    SceneObject,
    make_scene,
    render_scene,
)
from transformers_lladav.suite import PICTURE_SIDE

RESULT = Path(__file__).resolve().parent / "results" / "decoding.json"
CANVAS = 48
BLOCKS = (8, 48)
STEPS = (48, 24, 12, 6, 1)
SWEEPS: dict[str, tuple[float, ...]] = {
    "threshold": (0.5, 0.7, 0.9, 0.99),
    "factor": (0.3, 1.0),
    "entropy_bound": (0.03, 0.3),
}
OBJECT = rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) at the ({'|'.join(sorted(PLACES, key=len, reverse=True))})"
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
        tasks = open_tasks([f"suite:{split}"], limit=questions)
        scores = {row.kind: row for row in measure(assistant.model, assistant.processor, tasks, Asking(settings))}
        row[split] = {
            "questions": scores[ALL].questions,
            "exact_match": scores[ALL].score,
            "tokens_per_forward": scores[ALL].tokens_per_forward,
            "caption_exact_match": scores["caption"].score,
            "caption_tokens_per_forward": scores["caption"].tokens_per_forward,
        }
    return row


def scene_picture(index: int) -> Image.Image:
    """The picture of a scene of the test split.

    Args:
        index: its number.

    Returns:
        The picture at the size of training.
    """
    return render_scene(make_scene("test", index), PICTURE_SIDE)


def caption_of(scene: Scene) -> tuple[str, str]:
    """The question for a caption, and the true one.

    Args:
        scene: what is described.

    Returns:
        Both.
    """
    question = ASKERS["caption"](scene, random.Random(0))
    assert question is not None  # every scene has a caption
    return question.text, question.answer


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
    drawn = [scene_picture(index) for index in range(2 * samples)]
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
    return len(places) == len(set(places)) <= MAX_OBJECTS


def measure_infilling(assistant: asking.Assistant, count: int) -> list[dict[str, Any]]:
    """Exact match of single words hidden in true captions, with the right and with a wrong picture.

    Args:
        assistant: a loaded checkpoint.
        count: captions per kind of word.

    Returns:
        A row per kind of word.
    """
    numbers = range(count + 1)
    rows = []
    for kind in ("colour", "shape", "place"):
        right = blind = tokens = forwards = 0
        for number, other in pairwise(numbers):
            scene = make_scene("test", number)
            question, caption = caption_of(scene)
            template = hide(assistant, caption, random.Random(number).choice(scene.objects), kind)
            for shown in (number, other):
                given = asking.fill(assistant, scene_picture(shown), question, template)
                right += shown == number and given.text == caption
                blind += shown == other and given.text == caption
                tokens += given.tokens
                forwards += given.denoising_steps
        rows.append({"hidden": kind, "captions": count, "exact_match": right / count, "wrong_picture": blind / count})
        rows[-1]["tokens_per_forward"] = tokens / forwards
    return rows


def hide(assistant: asking.Assistant, caption: str, item: SceneObject, kind: str) -> str:
    """The caption with a hole of the right length in the place of a word about an object.

    Args:
        assistant: for its tokenizer.
        caption: the whole text.
        item: one of its objects.
        kind: "colour", "shape" or "place".

    Returns:
        The template for infilling.
    """
    found = re.search(rf"(?P<colour> {item.colour})(?P<shape> {item.shape}) at the(?P<place> {item.place})", caption)
    assert found is not None
    start, end = found.span(kind)
    whole = assistant.tokenizer(caption[:end], add_special_tokens=False).input_ids
    length = len(whole) - len(assistant.tokenizer(caption[:start], add_special_tokens=False).input_ids)
    return f"{caption[:start]} [MASK:{length}]{caption[end:]}"


def measure_repeats(assistant: asking.Assistant, settings: dict[str, Any], samples: int) -> dict[str, Any]:
    """How much a long answer repeats itself when the model is kept from ending it.

    Args:
        assistant: a loaded checkpoint.
        settings: of `generate`.
        samples: how many captions.

    Returns:
        The settings with the share of answers that hold a repeated run of tokens, and of tokens inside such runs.
    """
    pictures = [scene_picture(index) for index in range(samples)]
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


def main(arguments: list[str] | None = None) -> int:
    """Measure everything and write the result file.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--questions", type=int, default=260, help="questions per split and arm (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, default=100, help="captions in the other parts (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file (default: %(default)s)")
    options = parser.parse_args(arguments)
    assistant, console = asking.load(device="cpu"), Console(stderr=True)

    def progress(items: list[Any], what: str) -> Iterable[Any]:
        return track(items, description=what, console=console)

    long = [
        {"block_length": 8, "max_denoising_steps": steps, **rule}
        for steps in (LONG_CANVAS, LONG_CANVAS // 4)
        for rule in ({}, {"no_repeat_ngram_size": REPEATED}, {"no_repeat_ngram_size": 4})
    ]
    document = {
        **circumstances("measure_decoding.py", arguments),
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
