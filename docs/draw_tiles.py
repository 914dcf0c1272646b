"""How a picture becomes tiles, and tiles become tokens: drawn with the geometry that model and processor share."""

import base64
from pathlib import Path
from typing import Any

from PIL import Image
from svg import Drawing

from transformers_lladav import LladaVConfig
from transformers_lladav.tiling_lladav import TileLayout, best_resolution, fitted_size, tile_layout

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "tests" / "fixtures" / "parity" / "images" / "a1_landscape.jpg"  # CC0, see the README beside it
SCALE = 0.3  # of the drawing
TOKEN = 4.0


def layout_of(width: int, height: int) -> TileLayout:
    """The layout of a picture with LLaDA-V's own settings.

    Args:
        width: in pixels.
        height: in pixels.

    Returns:
        Its tiles and features.
    """
    config: Any = LladaVConfig()
    side = config.vision_config.image_size
    return tile_layout((height, width), config.image_grid_pinpoints, side, config.patches_per_side, config.max_tiles)


def draw_tiles() -> str:
    """The way of a photograph: base tile and canvas, their tiles, the features without padding, the tokens.

    Returns:
        The SVG.
    """
    config: Any = LladaVConfig()
    side, patches = config.vision_config.image_size, config.patches_per_side
    with Image.open(PHOTO) as photo:
        width, height = photo.size
    layout = layout_of(width, height)
    down, across = best_resolution((height, width), config.image_grid_pinpoints)
    fitted = fitted_size((height, width), (down, across))
    drawing = Drawing(860, 530, "A photograph as tiles and tokens")
    coded = base64.b64encode(PHOTO.read_bytes()).decode()
    picture = '<image id="tiled-photo" width="1" height="1" preserveAspectRatio="none" '
    drawing.parts.append(f'<defs>{picture}href="data:image/jpeg;base64,{coded}"/></defs>')
    drawing.text(0, 14, f"1  a picture, {width} x {height} pixels", "strong", 13)
    _photo(drawing, 0, 28, width * SCALE, height * SCALE)
    _base_tile(drawing, side, patches)
    drawing.text(500, 14, f"2b  the whole of it on a canvas of {across} x {down}", "strong", 13)
    _canvas(drawing, layout, (down, across), fitted, side)
    drawing.arrow([(width * SCALE + 8, 80), (246, 80)])
    drawing.arrow([(500 + across * SCALE / 2, 28 + down * SCALE + 8), (500 + across * SCALE / 2, 324)])
    drawing.arrow([(256 + side * SCALE / 2, 28 + side * SCALE + 46), (256 + side * SCALE / 2, 324)])
    _features(drawing, layout, patches)
    return drawing.svg()


def _photo(drawing: Drawing, x: float, y: float, width: float, height: float) -> None:
    place = f"translate({x:g} {y:g}) scale({width:g} {height:g})"
    drawing.add("use", href="#tiled-photo", transform=place)


def _base_tile(drawing: Drawing, side: int, patches: int) -> None:
    """The picture stretched to one tile."""
    drawing.text(256, 14, "2a  stretched to the base tile", "strong", 13)
    _photo(drawing, 256, 28, side * SCALE, side * SCALE)
    drawing.rect(256, 28, side * SCALE, side * SCALE, "frame", 0)
    drawing.text(256, 28 + side * SCALE + 16, f"{side} x {side}", "soft", 12)
    drawing.text(256, 28 + side * SCALE + 32, f"{patches} x {patches} patches", "soft", 12)


def _canvas(drawing: Drawing, layout: TileLayout, canvas: tuple[int, int], fitted: tuple[int, int], side: int) -> None:
    """The picture between its padding, cut into tiles."""
    down, across = canvas
    x, y = 500.0, 28.0
    drawing.rect(x, y, across * SCALE, down * SCALE, "black", 0)
    left, top = (across - fitted[1]) // 2, (down - fitted[0]) // 2
    _photo(drawing, x + left * SCALE, y + top * SCALE, fitted[1] * SCALE, fitted[0] * SCALE)
    for row in range(layout.tiles[0]):
        for column in range(layout.tiles[1]):
            place = (x + column * side * SCALE, y + row * side * SCALE)
            drawing.rect(*place, side * SCALE, side * SCALE, "frame", 0)
    beside = x + across * SCALE + 10
    tiles = layout.tiles[0] * layout.tiles[1]
    drawing.text(beside, y + 12, f"{tiles} tiles", "soft", 12)
    drawing.text(beside, y + 28, "padding black", "soft", 12)


def _features(drawing: Drawing, layout: TileLayout, patches: int) -> None:
    """Base tokens, and the map without its padding and with a newline behind every row."""
    y, side = 350.0, patches * TOKEN
    base = patches * patches
    drawing.text(256, y - 10, f"3a  {base} tokens", "strong", 13)
    _grid(drawing, 256, y, patches, patches)
    drawing.text(256, y + side + 16, f"{patches} x {patches}", "soft", 12)
    rows, columns = layout.grid
    drawing.text(500, y - 10, f"3b  {layout.num_grid_tokens:,} tokens", "strong", 13)
    _grid(drawing, 500, y, rows, columns)
    newline = 500 + columns * TOKEN + 3
    drawing.rect(newline, y, TOKEN, rows * TOKEN, "run", 0)
    drawing.text(newline + 10, y + 12, "a newline ends", "soft", 12)
    drawing.text(newline + 10, y + 28, "every row", "soft", 12)
    drawing.text(500, y + rows * TOKEN + 16, f"{rows} rows of {columns} patches,", "soft", 12)
    drawing.text(500, y + rows * TOKEN + 32, "those of the padding are dropped", "soft", 12)
    drawing.text(0, y + 12, f"{base + layout.num_grid_tokens:,} tokens", "strong", 20)
    drawing.text(0, y + 32, "in place of <image>:", "soft", 12)
    drawing.text(0, y + 48, "the base tile first, then the map", "soft", 12)


def _grid(drawing: Drawing, x: float, y: float, rows: int, columns: int) -> None:
    """A map of features, a cell each."""
    drawing.rect(x, y, columns * TOKEN, rows * TOKEN, "remembered", 0)
    lines = [f"M{x + column * TOKEN:g} {y:g}v{rows * TOKEN:g}" for column in range(columns + 1)]
    lines += [f"M{x:g} {y + row * TOKEN:g}h{columns * TOKEN:g}" for row in range(rows + 1)]
    drawing.add("path", d="".join(lines), kind="rule", stroke_width=0.5)
