"""What the bundled checkpoint did when it was asked about the example scene: tokens by step, and positions by pass.

The drawings of answers and caches are made from it, `recorded.json`; `python docs/record.py` records it anew.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers_lladav import BUNDLED_CHECKPOINT, asking

ROOT = Path(__file__).resolve().parent.parent
RECORDED = Path(__file__).resolve().parent / "recorded.json"
PICTURE = "model_cards/assets/scene.png"
QUESTION = "Describe the picture."

ANSWERS: dict[str, dict[str, Any]] = {"schedule": {}, "threshold": {"threshold": 0.9}}
# Two tokens per step in all of them, in place of the presets' threshold, so that passes can be laid side by side.
_STEPS = {"threshold": None, "max_denoising_steps": 24}
CACHES: dict[str, dict[str, Any]] = {
    "exact": {"preset": "exact", **_STEPS},
    "balanced": {"preset": "balanced", **_STEPS},
    "fast": {"preset": "fast", **_STEPS},
    "dual": {"use_cache": "dual", "prompt_refresh_interval": 4, **_STEPS},
}


def record_answer(assistant: asking.Assistant, settings: dict[str, Any]) -> dict[str, Any]:
    """Ask, and keep when each token was written and how sure the model was of it.

    Args:
        assistant: the bundled checkpoint.
        settings: of `generate`.

    Returns:
        The settings, and per slot of the blocks that were begun the token's text and id, the step that wrote it and
        the confidence; None for what stayed a mask.
    """
    recorder = asking.record(assistant)
    asking.ask(assistant, ROOT / PICTURE, QUESTION, recorder=recorder, **settings)
    block = assistant.model.generation_config.block_length
    last = recorder.frames[-1]
    begun = -(-(1 + max(slot for frame in recorder.frames for slot in frame.fresh)) // block) * block
    written = {slot: step for step, frame in enumerate(recorder.frames) for slot in frame.fresh}
    slots = []
    for slot, token in enumerate(last.token_ids[:begun]):
        ends = token in assistant.end_token_ids
        text = "end" if ends else assistant.tokenizer.decode([token]).strip()
        slots.append([text, token, written[slot], last.confidence[slot]] if slot in written else [None] * 4)
    return {"settings": settings, "block_length": block, "steps": len(recorder.frames) - 1, "slots": slots}


def record_passes(assistant: asking.Assistant, settings: dict[str, Any]) -> dict[str, Any]:
    """Ask, and keep which positions of prompt and answer each pass through the language model runs.

    Args:
        assistant: the bundled checkpoint.
        settings: of `generate`.

    Returns:
        The settings, where the picture and the canvas begin and end, and per pass the block that was written and the
        positions that were run, as stretches of first and last + 1.
    """
    passes: list[dict[str, Any]] = []

    def before(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        passes.append({"run": stretches(sorted(set(named["position_ids"][0].tolist())))})

    def after(step: Any) -> None:
        passes[-1]["block"] = step.block

    messages = [asking.user_message([str(ROOT / PICTURE)], QUESTION)]
    inputs = assistant.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    hook = assistant.model.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        assistant.model.generate(**inputs, callback_on_step_end=after, **settings)
    finally:
        hook.remove()
    picture = (inputs.input_ids[0] == assistant.model.config.image_token_id).nonzero()[:, 0].tolist()
    config = assistant.model.generation_config
    prompt = inputs.input_ids.shape[1]
    layout = {"picture": [picture[0], picture[-1] + 1], "prompt": prompt, "length": prompt + config.max_new_tokens}
    return {"settings": settings, **layout, "block_length": config.block_length, "passes": passes}


def stretches(numbers: list[int]) -> list[list[int]]:
    """Ascending numbers as stretches without gaps, each its first and its last + 1."""
    breaks = [index + 1 for index, (left, right) in enumerate(pairwise(numbers)) if right != left + 1]
    return [[numbers[start], numbers[end - 1] + 1] for start, end in pairwise([0, *breaks, len(numbers)])]


def record() -> dict[str, Any]:
    """Ask everything that is drawn.

    Returns:
        The content of `recorded.json`.
    """
    assistant = asking.load(BUNDLED_CHECKPOINT, device="cpu")
    return {
        "picture": PICTURE,
        "question": QUESTION,
        "answers": {name: record_answer(assistant, settings) for name, settings in ANSWERS.items()},
        "caches": {name: record_passes(assistant, settings) for name, settings in CACHES.items()},
    }


def read_recorded() -> Any:
    """The recording that the drawings are made from."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def main() -> int:
    """Write the recording.

    Returns:
        0.
    """
    RECORDED.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
