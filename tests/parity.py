"""The official implementation's numbers: where they lie, how near ours must be, and who compared what.

Plain functions, because test modules need the cases' names while pytest collects.
"""

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "fixtures" / "parity"
OFFICIAL = FOLDER / "checkpoint-official"

PICTURE = -200  # stands for a picture or a video in the official ids
MASK, PAD, EOT = 126336, 126081, 126348
TOKENS = 126349  # entries of the tokenizer: the official loader cuts the head to them

PIXELS = 1e-5
FEATURES = 1e-4
LOGITS = 1e-3  # of values up to 28; CPUs that sum in another order were seen to differ by 6.4e-4
LOSS = 1e-5  # relative
GRADIENT = 1e-4  # relative to the norm of the gradient
CONFIDENCE = 1e-4  # probabilities of logits that differ so; 1.8e-5 was seen
EXACT = 0.0
ARGMAX_MARGIN = 1e-3  # below it the argmax may flip

PICTURES = (
    "a1_landscape.jpg",
    "a2_portrait.jpg",
    "a3_square_palette.png",
    "a4_panorama.jpg",
    "a5_tiny_gray.png",
    "a6_rgba.png",
    "a7_large.jpg",
)

# The content that gives the official ids, where it is not simply the one with "\n" after the picture: the official
# code drops the token after every picture, whatever it is.
CONTENT_WITHOUT_DROPPED_TOKEN = {
    "image_mid_sentence": "Look at <image> which colours do you see?",
    "image_no_newline": "<image>hat animal is this?",
    "two_images": "<image><image>Compare the two pictures.",
    "two_images_stacked": "<image><image>Compare the two pictures.",
}

# Settings of model and image processor that a prompt was made with.
GEOMETRY = {
    "two_images_stacked": {"single_tile_newline": False},
    "two_images_anyres": {"tiling": "tiles"},
    "video_one_token": {"newline_position": "one_token"},
}
MODEL_SETTINGS = ("single_tile_newline", "newline_position")


@cache
def numbers(name: str) -> Any:
    """A JSON file of the fixtures."""
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def tensors(name: str) -> dict[str, torch.Tensor]:
    """A safetensors file of the fixtures."""
    return load_file(FOLDER / f"{name}.safetensors")


def by_id(name: str, key: str, field: str = "id") -> dict[str, Any]:
    """Entries of a list in a JSON file, by their id."""
    return {entry[field]: entry for entry in numbers(name)[key]}


def picture(name: str) -> Image.Image:
    """A test picture as it is stored."""
    return Image.open(FOLDER / "images" / name)


def frames() -> list[Image.Image]:
    """The video: crops that wander over one picture."""
    video = numbers("preprocess")["video"]
    source = picture(video["source_image"]).convert("RGB")
    return [source.crop(box) for box in video["frame_boxes_left_top_right_bottom"]]


def chat(prompt: dict[str, Any]) -> list[dict[str, str]]:
    """The messages that lead to the official ids of a prompt."""
    messages = [{"role": "system", "content": prompt["system"]}] if "system" in prompt else []
    for role, content in prompt["turns"]:
        if content is not None:
            if "<image>" in content:
                content = CONTENT_WITHOUT_DROPPED_TOKEN.get(prompt["id"], content)
                if prompt["image_mode"] == "video":
                    content = content.replace("<image>\n", "<video>")
            messages.append({"role": role, "content": content})
    return messages


def model_inputs(processor: Any, prompt: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the processor makes of a prompt, its pictures and its settings."""
    # The official code takes typed control tokens for real ones.
    text = processor.apply_chat_template(chat(prompt), add_generation_prompt=True, sanitize_control_tokens=False)
    settings = GEOMETRY.get(prompt["id"], {})
    if prompt["image_mode"] == "video":
        return processor(text=text, videos=[frames()], return_tensors="pt", **settings)
    pictures = [picture(name) for name in prompt["images"]] or None
    return processor(text=text, images=pictures, return_tensors="pt", **settings)


def mixed_samples() -> list[dict[str, Any]]:
    """Samples of different kinds and lengths: text short, text long, one picture, two pictures, a video."""
    return [
        {"text": "Hi"},
        {"text": "Tell me a long story about prime numbers, please. " * 4},
        {"text": "<image>What is it?", "images": [[picture("a5_tiny_gray.png")]]},
        {
            "text": "<image><image>Compare.",
            "images": [[picture("a2_portrait.jpg"), picture("a3_square_palette.png")]],
        },
        {"text": "<video>What happens?", "videos": [[frames()[:2]]]},
    ]


def expand(ids: list[int], counts: list[int], token_id: int) -> list[int]:
    """Official ids with every -200 replaced by as many placeholders as the picture has tokens."""
    remaining = iter(counts)
    return [token for given in ids for token in ([token_id] * next(remaining) if given == PICTURE else [given])]


class Report:
    """Collects every comparison with the official numbers, and fails those that are too far away."""

    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []

    def check(self, group: str, case: str, deviation: float, tolerance: float) -> None:
        """Note one comparison, then assert it.

        Args:
            group: what was compared, such as "logits".
            case: on which input.
            deviation: the largest one; for exact comparisons the number of entries that differ.
            tolerance: what is allowed.
        """
        deviation = float(deviation)
        self.cases.append({"group": group, "case": case, "deviation": deviation, "tolerance": tolerance})
        assert deviation <= tolerance, f"{group}, {case}: off by {deviation:.3g}, allowed {tolerance:.3g}"

    def close(self, group: str, case: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
        """Compare two tensors of the same shape by their largest absolute difference."""
        assert ours.shape == theirs.shape, f"{group}, {case}: shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
        self.check(group, case, (ours.double() - theirs.double()).abs().max(), tolerance)

    def same(self, group: str, case: str, ours: list[Any], theirs: list[Any]) -> None:
        """Compare two lists entry by entry; one that is longer differs in the rest."""
        differing = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
        self.check(group, case, differing, EXACT)

    def groups(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Per group: its name, how many cases it has, and the case that uses most of its tolerance."""
        found: dict[str, list[dict[str, Any]]] = {}
        for case in self.cases:
            found.setdefault(case["group"], []).append(case)
        return [(group, len(cases), max(cases, key=lambda case: case["deviation"])) for group, cases in found.items()]

    def as_json(self) -> dict[str, Any]:
        """All cases, and what they ran on."""
        packages = ("torch", "transformers", "tokenizers", "numpy", "pillow", "transformers_lladav")
        return {"cases": self.cases, "versions": {name: version(name) for name in packages}}
