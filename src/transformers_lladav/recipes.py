"""Named training settings as data: change one with `dataclasses.replace`, save it with `to_json`."""

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class TinyRecipe:
    """Everything that decides how the bundled checkpoint is trained from scratch on `scenes`.

    Attributes:
        picture_side: pixels along one side of a picture; one tile, no tiling.
        patch_size: pixels along one side of a patch.
        vision_hidden: width of the vision tower.
        vision_layers: its layers.
        text_hidden: width of the language model.
        text_layers: its layers.
        heads: attention heads of both.
        mlp_ratio: width of the MLPs over the hidden width.
        steps: optimiser steps in all, the tower's own included.
        tower_steps: steps at the start in which the tower alone learns to name colour and shape in every cell; it
            stands in for the pre-training that SigLIP2 brings along.
        dense_steps: steps after that in which every text is a whole-scene reading; without them the model learns
            the answers' statistics and stays blind to the picture.
        tower_rate: learning rate of the tower after its own steps, relative to the rest; a high one destroys it.
        scenes_per_step: pictures of a batch.
        questions_per_scene: questions about each of them in a question step.
        long_every: in the later stage, every so many steps captions (and, alternating, readings) are trained.
        question_weights: how often each kind of question is asked, relative to the others.
        learning_rate: peak of the schedule.
        warmup_steps: linear warm-up at the start.
        final_learning_rate: what the cosine ends at.
        weight_decay: of AdamW, on matrices only.
        full_mask_rate: share of samples whose answer is masked completely.
        least_noise: lowest masking probability of the others.
        padding_weight: what an end token after the first counts in the loss.
        ema_decay: decay of the averaged weights that are saved.
        seed: of the initial weights and all draws.
    """

    picture_side: int = 64
    patch_size: int = 16
    vision_hidden: int = 96
    vision_layers: int = 3
    text_hidden: int = 96
    text_layers: int = 3
    heads: int = 4
    mlp_ratio: int = 4
    steps: int = 11_000
    tower_steps: int = 1_000
    dense_steps: int = 1_000
    tower_rate: float = 0.1
    scenes_per_step: int = 24
    questions_per_scene: int = 4
    long_every: int = 4
    question_weights: dict[str, float] = dataclasses.field(
        default_factory=lambda: {
            "colour": 3.0,
            "shape": 3.0,
            "where_is": 2.0,
            "what_is_at": 1.5,
            "count": 0.5,
            "existence": 2.0,
        }
    )
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    final_learning_rate: float = 2e-5
    weight_decay: float = 0.01
    full_mask_rate: float = 0.5
    least_noise: float = 0.1
    padding_weight: float = 0.1
    ema_decay: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tower_steps + self.dense_steps > self.steps:
            raise ValueError(
                f"tower_steps={self.tower_steps} and dense_steps={self.dense_steps} are more than steps={self.steps}"
            )
        if self.picture_side % self.patch_size:
            raise ValueError(
                f"picture_side={self.picture_side} is not a multiple of patch_size={self.patch_size}; "
                f"pass picture_side={self.picture_side // self.patch_size * self.patch_size}"
            )

    def to_json(self) -> str:
        """The recipe as JSON, for `recipe.json` beside the weights."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TinyRecipe":
        """Read a recipe back.

        Args:
            text: what `to_json` wrote.

        Returns:
            The recipe.

        Raises:
            ValueError: naming fields that do not exist.
        """
        fields: dict[str, Any] = json.loads(text)
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"a recipe has no field {', '.join(unknown)}")
        return cls(**fields)


def change_recipe(recipe: TinyRecipe, changes: list[str]) -> TinyRecipe:
    """Apply `field=value` texts from a command line.

    Args:
        recipe: what to start from.
        changes: such as "steps=500"; the value is read as JSON.

    Returns:
        The changed recipe.

    Raises:
        ValueError: for an unknown field, a text without "=" or a value of another type.
    """
    known = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    values: dict[str, Any] = {}
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator or name not in known:
            raise ValueError(f"{change!r} changes nothing: give FIELD=VALUE with one of {', '.join(known)}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{change!r}: {text!r} is not a JSON value such as 500, 1e-3 or true") from error
        expected = type(known[name])
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not expected:
            raise ValueError(f"{change!r}: {name} takes {expected.__name__}, not {type(value).__name__}")
        values[name] = value
    return dataclasses.replace(recipe, **values)
