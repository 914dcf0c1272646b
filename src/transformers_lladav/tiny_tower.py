"""The bundled checkpoint's vision tower learns to see: what every patch shows, named by small heads.

The paper begins with SigLIP2, which was trained on billions of pictures. In its place the tiny tower learns colours,
shapes, characters and values patch by patch; the heads are thrown away afterwards.
"""

import random
from typing import Any

import torch
import torch.nn.functional as F

from . import suite
from .charts import MAX_VALUE, Chart
from .lettering import CHARACTERS
from .shape_scenes import COLOURS, GRID, PLACES, SHAPES, Scene
from .signs import Sign

# What the heads name, and how many names there are besides "nothing".
HEADS = {
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "character": len(CHARACTERS),
    "value": MAX_VALUE,
    "place": len(PLACES),
}
PLACE = list(HEADS).index("place")
FAMILIES = {"scene": 3.0, "sign": 4.0, "chart": 2.0}
LEAST_OVERLAP = 0.3  # of a patch with a line of text
NOTHING_WEIGHT = 0.2  # most patches show nothing


def patch_labels(world: Any, patches: int) -> torch.Tensor:
    """What each patch of a picture shows.

    Args:
        world: a scene, sign or chart.
        patches: along one side; a multiple of three, so that every cell of a scene has its own.

    Returns:
        (heads, patches, patches) indices, 0 for nothing. All patches know their place, that of the cell which a
        scene has there; those of an object's cell show the object. A patch that a line of text runs through shows
        the character whose middle is in its column, and all patches of a column the bar whose middle is in it.
    """
    labels = torch.zeros(len(HEADS), patches, patches, dtype=torch.long)
    cell = patches // GRID
    places = torch.arange(1, GRID * GRID + 1).view(GRID, GRID)
    labels[PLACE] = places.repeat_interleave(cell, dim=0).repeat_interleave(cell, dim=1)
    if isinstance(world, Scene):
        for item in world.objects:
            rows, columns = (slice(cell * at, cell * (at + 1)) for at in (item.row, item.column))
            labels[0, rows, columns] = list(COLOURS).index(item.colour) + 1
            labels[1, rows, columns] = SHAPES.index(item.shape) + 1
    elif isinstance(world, Sign):
        lines = [
            row
            for row in range(patches)
            if min(world.top + world.height, (row + 1) / patches) - max(world.top, row / patches)
            > LEAST_OVERLAP / patches
        ]
        for character, x in zip(world.text, world.middles, strict=True):
            labels[2, lines, int(x * patches)] = CHARACTERS.index(character) + 1
    elif isinstance(world, Chart):
        for colour, value, x in zip(world.colours, world.values, world.centres(), strict=True):
            labels[0, :, int(x * patches)] = list(COLOURS).index(colour) + 1
            labels[3, :, int(x * patches)] = value
    return labels


class PatchReader(torch.nn.Module):
    """Names what patches show.

    Args:
        hidden_size: width of the tower.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(hidden_size, names + 1) for names in HEADS.values())
        self.norm = torch.nn.LayerNorm(hidden_size)

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of the heads, summed, and how often what is there is named right.

        Args:
            features: (pictures, patches ** 2, hidden) of the tower.
            labels: (pictures, heads, patches, patches).

        Returns:
            The loss, a scalar; and (heads,) shares of right names among patches that show something.
        """
        features = self.norm(features).flatten(0, 1)
        losses, shares = [], []
        for number, head in enumerate(self.heads):
            names, target = head(features), labels[:, number].flatten()
            weight = torch.ones(names.shape[-1], device=names.device)
            weight[0] = NOTHING_WEIGHT
            losses.append(F.cross_entropy(names, target, weight=weight))
            there = target != 0
            shares.append((names.argmax(-1) == target)[there].float().mean())
        return torch.stack(losses).sum(), torch.stack(shares).detach()


class TowerLesson(torch.nn.Module):
    """A model's vision tower with a reader on top.

    Args:
        model: a LLaDA-V; only its tower is used.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.reader = PatchReader(model.config.vision_config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The reader's loss on some pictures.

        Args:
            pixel_values: (pictures, 3, side, side).
            labels: (pictures, heads, patches, patches).

        Returns:
            The scalar `loss`, and `shares`, (heads,).
        """
        loss, shares = self.reader(self.model.model.encode_tiles(pixel_values), labels)
        return {"loss": loss, "shares": shares}


class PatchPictures(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Pictures of the train split with what their patches show.

    Args:
        image_processor: of the model.
        patches: along one side.
        first: index of the first picture.
        count: how many.
        split: of the suite.
    """

    def __init__(self, image_processor: Any, patches: int, first: int, count: int, split: str = "train") -> None:
        self.image_processor, self.patches = image_processor, patches
        self.first, self.count, self.split = first, count, split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, torch.Tensor]]:
        """Several pictures at once, which takes a quarter of the time; `DataLoader` asks for whole batches."""
        pictures, labels = [], []
        for index in (self.first + number for number in numbers):
            name = random.Random(f"patches {index}").choices(list(FAMILIES), list(FAMILIES.values()))[0]
            world = suite.FAMILIES[name].make(self.split, index)
            pictures.append(suite.FAMILIES[name].pictures(world))
            labels.append(patch_labels(world, self.patches))
        pixels = self.image_processor(pictures, return_tensors="pt").pixel_values
        return [{"pixel_values": picture, "labels": label} for picture, label in zip(pixels, labels, strict=True)]


@torch.no_grad()
def fit_projector(model: Any, pixel_values: torch.Tensor) -> None:
    """Start the projector from standardised features: fold their mean and spread into its first layer.

    Args:
        model: its tower is trained, its projector is not.
        pixel_values: (pictures, 3, side, side) to measure on.
    """
    features = model.model.encode_tiles(pixel_values).flatten(0, 1)  # (patches of all pictures, hidden)
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp(min=1e-3)
    projector = model.model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        torch.nn.init.zeros_(layer.bias)
    projector.linear_1.weight.div_(spread)
    projector.linear_1.bias.copy_(-projector.linear_1.weight @ mean)
