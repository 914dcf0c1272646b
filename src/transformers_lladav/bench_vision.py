"""How long vision tower and projector take for a picture, by its tiles: on GPUs, where times mean something."""

import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from .bench import Progress, wait
from .configuration_lladav import LladaVConfig
from .modeling_lladav import LladaVForMaskedDiffusion

TILES = (1, 5, 10, 37)  # a small picture; a large one in the official grid; the largest grids


@torch.no_grad()
def time_vision(
    config: LladaVConfig,
    device: str,
    dtype: torch.dtype,
    tiles: Sequence[int],
    rounds: int,
    on_progress: Progress | None = None,
) -> dict[str, float]:
    """Time tower and projector with random weights.

    Args:
        config: of a model, of whose language part only the width counts.
        device: where it runs.
        dtype: of the weights.
        tiles: of a picture, each number is timed.
        rounds: that count, after one that does not.
        on_progress: is told how many runs are done and how many there are.

    Returns:
        Milliseconds by the number of tiles, medians.
    """
    narrow: Any = copy.deepcopy(config)
    narrow.text_config.num_hidden_layers = 1
    with torch.device(device):
        model = LladaVForMaskedDiffusion._from_config(narrow, dtype=dtype).model.eval()
    size, found = narrow.vision_config.image_size, dict[str, float]()
    for number, count in enumerate(tiles):
        pixels = torch.randn(count, 3, size, size, device=device, dtype=dtype)
        seconds = []
        for done in range(rounds + 1):
            wait(device)
            began = time.perf_counter()
            model.multi_modal_projector(model.encode_tiles(pixels))
            wait(device)
            seconds.append(time.perf_counter() - began)
            if on_progress is not None:
                on_progress(number * (rounds + 1) + done + 1, len(tiles) * (rounds + 1))
        found[str(count)] = round(1000 * statistics.median(seconds[1:]), 3)
    return found
