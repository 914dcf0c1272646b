"""Geometry of a tiled picture: which tiles cut it, and which patches of their map become tokens.

Pure arithmetic on sizes, shared by the image processor (how many placeholders) and the model (which features), so
that both always agree. Follows the "anyres" scheme of LLaVA-OneVision that LLaDA-V uses (arXiv:2505.16933, section 3).
Sizes are (height, width), in pixels or in patches.
"""

import math
from dataclasses import dataclass

Size = tuple[int, int]

# [height, width] in pixels of 1 x 1 to 6 x 6 tiles; the width varies slowest, which decides between equally good ones.
DEFAULT_PINPOINTS = [[384 * down, 384 * across] for across in range(1, 7) for down in range(1, 7)]

# Above this ratio a feature map is shrunk to the tile limit; below it the gain would not pay for the blur.
SHRINK_ABOVE = 1.1


@dataclass(frozen=True)
class TileLayout:
    """Where the tokens of one tiled picture come from.

    Attributes:
        tiles: tiles down and across, without the base tile.
        rows: first and last + 1 row of the patch map that shows the picture and not its padding.
        columns: the same for columns.
        grid: rows and columns of features that remain after shrinking to the tile limit.
    """

    tiles: Size
    rows: tuple[int, int]
    columns: tuple[int, int]
    grid: Size

    @property
    def unpadded(self) -> Size:
        """Rows and columns of the patch map without the padding, before shrinking."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def num_tiles(self) -> int:
        """Tiles including the base tile."""
        return self.tiles[0] * self.tiles[1] + 1

    @property
    def num_grid_tokens(self) -> int:
        """Tokens of the tiled map: every row of features ends with one newline token."""
        return self.grid[0] * (self.grid[1] + 1)


def best_resolution(image_size: Size, pinpoints: list[list[int]]) -> Size:
    """Choose the canvas that keeps most of the picture and wastes least of itself.

    Args:
        image_size: (height, width) of the picture in pixels.
        pinpoints: candidate canvases as [height, width]; among equals the earlier one wins.

    Returns:
        (height, width) of the chosen canvas.
    """
    height, width = image_size
    best, best_effective, best_waste = (0, 0), -1, math.inf
    for canvas_height, canvas_width in pinpoints:
        scale = min(canvas_width / width, canvas_height / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = canvas_width * canvas_height - effective
        if effective > best_effective or (effective == best_effective and waste < best_waste):
            best, best_effective, best_waste = (canvas_height, canvas_width), effective, waste
    return best


def fitted_size(image_size: Size, canvas: Size) -> Size:
    """Size of the picture when it is scaled to touch the canvas without leaving it, in pixels."""
    height, width = image_size
    canvas_height, canvas_width = canvas
    if canvas_width / width < canvas_height / height:
        return min(math.ceil(height * (canvas_width / width)), canvas_height), canvas_width
    return canvas_height, min(math.ceil(width * (canvas_height / height)), canvas_width)


def _unpadded_span(total: int, shown: int) -> tuple[int, int]:
    padding = (total - shown) // 2
    return padding, total - padding


def tile_layout(
    image_size: Size, pinpoints: list[list[int]], tile_size: int, patches_per_side: int, max_tiles: int
) -> TileLayout:
    """Lay out the tiles of a picture and the features that are kept of them.

    Args:
        image_size: (height, width) of the picture in pixels.
        pinpoints: candidate canvases as [height, width] in pixels, multiples of `tile_size`.
        tile_size: side of a tile in pixels.
        patches_per_side: patches along one side of a tile.
        max_tiles: a feature map larger than this many tiles is shrunk to about that area.

    Returns:
        The layout; its `num_grid_tokens` is what the tiled map adds after the base tile's tokens.
    """
    height, width = image_size
    canvas_height, canvas_width = best_resolution(image_size, pinpoints)
    down, across = canvas_height // tile_size, canvas_width // tile_size
    map_height, map_width = down * patches_per_side, across * patches_per_side
    rows, columns = (0, map_height), (0, map_width)
    # The scale is rounded before it is applied, as upstream does: h * (W / w), not (h * W) / w.
    if width / height > map_width / map_height:
        rows = _unpadded_span(map_height, int(height * (map_width / width)))
    else:
        columns = _unpadded_span(map_width, int(width * (map_height / height)))
    shown_rows, shown_columns = rows[1] - rows[0], columns[1] - columns[0]
    ratio = math.sqrt(shown_rows * shown_columns / (max_tiles * patches_per_side**2))
    grid = (shown_rows, shown_columns)
    if ratio > SHRINK_ABOVE:
        grid = (int(shown_rows // ratio), int(shown_columns // ratio))
    return TileLayout((down, across), rows, columns, grid)


def video_frame_side(patches_per_side: int) -> int:
    """Side of a video frame's feature map after 2 x 2 pooling: 27 patches become 14."""
    return -(-patches_per_side // 2)


def video_token_count(frames: int, patches_per_side: int, newline_position: str) -> int:
    """Tokens of one video.

    Args:
        frames: number of frames.
        patches_per_side: patches along one side of a frame before pooling.
        newline_position: "grid" (a newline after every row), "frame" (after every frame), "one_token" (one at the
            end) or "no_token".

    Returns:
        The number of tokens, newlines included.
    """
    side = video_frame_side(patches_per_side)
    if newline_position == "grid":
        return frames * side * (side + 1)
    if newline_position == "frame":
        return frames * (side * side + 1)
    return frames * side * side + (1 if newline_position == "one_token" else 0)
