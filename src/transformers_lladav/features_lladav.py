"""Vision features to tokens: unpad, shrink, end rows with the newline vector (arXiv:2505.16933, section 3)."""

import math

import torch
import torch.nn.functional as F

from .tiling_lladav import TileLayout, video_frame_side


def pack_single_tile(tile: torch.Tensor, newline: torch.Tensor | None) -> torch.Tensor:
    """Tokens of a picture of one tile.

    Args:
        tile: (patches, hidden).
        newline: (hidden,) vector that ends the picture, or None.

    Returns:
        (tokens, hidden).
    """
    return tile if newline is None else torch.cat([tile, newline[None]])


def pack_tiles(tiles: torch.Tensor, layout: TileLayout, newline: torch.Tensor) -> torch.Tensor:
    """Tokens of a tiled picture: the base tile's, then the map of the others row by row.

    Args:
        tiles: (tiles, patches, hidden), the base tile first.
        layout: what the picture's size led to.
        newline: (hidden,) vector that ends every row of the map.

    Returns:
        (tokens, hidden).

    Raises:
        ValueError: if there are not as many tiles as the layout has.
    """
    if len(tiles) != layout.num_tiles:
        raise ValueError(f"the picture's size asks for {layout.num_tiles} tiles, but pixel_values hold {len(tiles)}")
    _, patches, hidden = tiles.shape
    side = math.isqrt(patches)
    down, across = layout.tiles
    # (down, across, side, side, hidden) -> (hidden, down * side, across * side)
    grid = tiles[1:].view(down, across, side, side, hidden).permute(4, 0, 2, 1, 3)
    grid = grid.reshape(hidden, down * side, across * side)[:, slice(*layout.rows), slice(*layout.columns)]
    if layout.grid != layout.unpadded:
        grid = F.interpolate(grid[None], size=layout.grid, mode="bilinear", align_corners=False)[0]
    grid = torch.cat([grid, newline[:, None, None].expand(-1, grid.shape[1], 1)], dim=2)
    return torch.cat([tiles[0], grid.flatten(1).T])


def pack_frames(frames: torch.Tensor, newline: torch.Tensor, position: str) -> torch.Tensor:
    """Tokens of a video: every frame's map at half resolution.

    Args:
        frames: (frames, patches, hidden).
        newline: (hidden,) vector.
        position: where newlines go: "grid" after every row, "frame" after every frame, "one_token" at the end,
            "no_token" nowhere.

    Returns:
        (tokens, hidden).
    """
    count, patches, hidden = frames.shape
    side = math.isqrt(patches)
    pooled = video_frame_side(side)
    maps = frames.transpose(1, 2).unflatten(2, (side, side))  # (frames, hidden, side, side)
    maps = F.interpolate(maps, size=(pooled, pooled), mode="bilinear", align_corners=False)
    rows = maps.permute(0, 2, 3, 1)  # (frames, pooled, pooled, hidden)
    if position == "grid":
        rows = torch.cat([rows, newline.expand(count, pooled, 1, hidden)], dim=2)
    elif position == "frame":
        rows = torch.cat([rows.flatten(1, 2), newline.expand(count, 1, hidden)], dim=1)
    tokens = rows.reshape(-1, hidden)
    return torch.cat([tokens, newline[None]]) if position == "one_token" else tokens
