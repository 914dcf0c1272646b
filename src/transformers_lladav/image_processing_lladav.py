"""Pictures to tiles: choose a canvas, cut it, normalise. Pillow and numpy, on as many threads as torch may use.

LLaDA-V, arXiv:2505.16933, section 3 ("anyres"). Pixel values depend on Pillow's bicubic filter on 8-bit pictures;
another library's resize differs by up to one grey level.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, auto_docstring

from .opening_lladav import open_encoded, open_picture
from .tiling_lladav import DEFAULT_PINPOINTS, best_resolution, fitted_size, tile_layout, video_token_count

PAD_COLOUR = (127, 127, 127)
NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")
TILINGS = ("auto", "tiles", "square")
MAX_TILE, MAX_CANVAS = 16384, 2**28  # in pixels: a side, and an area; far beyond any vision tower


class LladaVImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    image_grid_pinpoints (`list[list[int]]`, *optional*):
        Canvases a picture may be tiled on, as [height, width]. An empty list turns tiling off.
    patch_size (`int`, *optional*):
        Side of the vision tower's patches in pixels.
    max_tiles (`int`, *optional*):
        A feature map larger than this many tiles is shrunk to about that area.
    newline_position (`str`, *optional*):
        Where a video gets newline tokens: "grid", "frame", "one_token" or "no_token".
    single_tile_newline (`bool`, *optional*):
        Whether a picture of one tile ends with a newline token.
    tiling (`str`, *optional*):
        "auto" tiles a sample's only picture and pads several to one square tile each; "tiles" and "square" force one
        of the two.
    max_image_pixels (`int`, *optional*):
        Larger pictures are refused before they are decoded.
    max_video_frames (`int`, *optional*):
        A longer video is sampled uniformly down to this many frames.
    """

    image_grid_pinpoints: list[list[int]]
    patch_size: int
    max_tiles: int
    newline_position: Literal["grid", "frame", "one_token", "no_token"]
    single_tile_newline: bool
    tiling: Literal["auto", "tiles", "square"]
    max_image_pixels: int
    max_video_frames: int


class Geometry(NamedTuple):
    """The settings that decide tiles and token counts."""

    tile_size: int
    patches_per_side: int
    pinpoints: list[list[int]]
    max_tiles: int
    newline_position: str
    single_tile_newline: bool


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _are(value: Any, kind: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list | tuple) and length in (None, len(value)) and all(map(kind, value))


def _is_canvas(value: Any) -> bool:
    return _are(value, _is_whole, 2) and value[0] * value[1] <= MAX_CANVAS


_WHOLE: tuple[Callable[[Any], bool], str] = (_is_whole, "a whole number of at least 1")
SETTING_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "patch_size": _WHOLE,
    "max_tiles": _WHOLE,
    "max_image_pixels": _WHOLE,
    "max_video_frames": _WHOLE,
    "image_mean": (lambda value: _are(value, _is_finite, 3), "three finite numbers"),
    "image_std": (lambda value: _are(value, _is_finite, 3) and 0 not in value, "three finite numbers other than 0"),
    "rescale_factor": (_is_finite, "a finite number"),
    "newline_position": (lambda value: value in NEWLINE_POSITIONS, f"one of {', '.join(NEWLINE_POSITIONS)}"),
    "single_tile_newline": (lambda value: isinstance(value, bool), "True or False"),
    "tiling": (lambda value: value in TILINGS, f"one of {', '.join(TILINGS)}"),
    "image_grid_pinpoints": (
        lambda value: _are(value, _is_canvas),
        f"a list of [height, width] in pixels, at most {MAX_CANVAS} in a canvas",
    ),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings of an image processor that cut no picture, or one that no memory holds.

    Args:
        settings: those that are known, by name; None stands for a default.

    Raises:
        ValueError: with the name, the value and the rule.
    """
    for name, (fits, rule) in SETTING_RULES.items():
        if settings.get(name) is not None and not fits(settings[name]):
            raise ValueError(f"{name}={settings[name]!r:.80} of the image processor must be {rule}")
    size = settings.get("size")
    if size is None or isinstance(size, SizeDict):
        return
    sides = [size] if isinstance(size, int) else list(size.values()) if isinstance(size, Mapping) else size
    if (sides is size and not _are(size, _is_whole, 2)) or not _are(
        sides, lambda side: _is_whole(side) and side <= MAX_TILE
    ):
        raise ValueError(
            f"size={size!r:.80} of the image processor must be a height and a width in pixels, at most {MAX_TILE}"
        )


@auto_docstring
class LladaVImageProcessor(PilBackend):
    model_input_names = ["pixel_values", "image_sizes", "image_tile_counts"]
    valid_kwargs = LladaVImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 384, "width": 384}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    image_grid_pinpoints = DEFAULT_PINPOINTS
    patch_size = 14
    max_tiles = 4
    newline_position = "grid"
    single_tile_newline = True
    tiling = "auto"
    max_image_pixels = 178_956_970  # where Pillow itself refuses
    max_video_frames = 32

    def __init__(self, **kwargs: Unpack[LladaVImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """What transformers calls with the settings of a new processor, and with those of every call."""
        check_settings(kwargs)
        return super()._standardize_kwargs(**kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open every picture of a nested list; see `open_picture` for what is accepted and raised."""
        if isinstance(image_url_or_urls, list | tuple):
            return self._fetch_nested(image_url_or_urls, count(1))
        return open_picture(image_url_or_urls, "image", self.max_image_pixels)

    def _fetch_nested(self, images: Sequence[Any], counter: Iterator[int]) -> list[Any]:
        return [
            self._fetch_nested(item, counter)
            if isinstance(item, list | tuple)
            else open_picture(item, f"image {next(counter)}", self.max_image_pixels)
            for item in images
        ]

    @auto_docstring
    def preprocess(self, images: ImageInput, **kwargs: Unpack[LladaVImageProcessorKwargs]) -> BatchFeature:
        r"""
        images (`ImageInput`):
            A picture, a list of pictures (each its own sample), or a list of lists (the pictures of each sample).

        Returns `pixel_values` (tiles, 3, side, side) of all pictures one after the other, `image_sizes`
        (pictures, 2) as (height, width), `image_tile_counts` (pictures,) and `num_image_tokens`, a list.

        Raises a `ValueError` if there are no pictures, one cannot be read, or the settings do not fit each other.
        """
        return super().preprocess(images, **kwargs)

    def _preprocess_image_like_inputs(self, images: ImageInput, *args: Any, **kwargs: Any) -> BatchFeature:
        limit = kwargs.get("max_image_pixels") or self.max_image_pixels
        samples = images if isinstance(images, list | tuple) else [images]
        samples = [sample if isinstance(sample, list | tuple) else [sample] for sample in samples]
        if not any(samples):
            raise ValueError("there are no pictures; give at least one")
        counter = count(1)
        pictures = [[open_picture(item, f"image {next(counter)}", limit) for item in sample] for sample in samples]
        return self._preprocess(pictures, *args, **kwargs)

    def _preprocess(  # type: ignore[override]
        self,
        images: list[list[Image.Image]],
        resample: PILImageResampling,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: list[float],
        image_std: list[float],
        tiling: str,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        self._refuse_unsupported(kwargs)
        geometry = self.geometry(**kwargs)
        table = _value_table(do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        jobs = []
        for sample in images:
            tiled = geometry.pinpoints and (tiling == "tiles" or (tiling == "auto" and len(sample) == 1))
            if tiled:
                _check_canvases(geometry)
            jobs += [(self._cut if tiled else self._square, picture, geometry, resample) for picture in sample]
        tiles = _in_threads(lambda job: job[0](*job[1:]), jobs)
        sizes = [(picture.height, picture.width) for _, picture, *_ in jobs]
        counts = [len(cut) for cut in tiles]
        tokens = [count_image_tokens(size, count, geometry) for size, count in zip(sizes, counts, strict=True)]
        data = {"pixel_values": _apply_table(tiles, table), "image_sizes": sizes, "image_tile_counts": counts}
        features = BatchFeature(data, tensor_type=return_tensors)
        features["num_image_tokens"] = tokens
        return features

    def _refuse_unsupported(self, options: dict[str, Any]) -> None:
        for name, only in (
            ("do_resize", True),
            ("do_convert_rgb", True),
            ("do_center_crop", False),
            ("do_pad", False),
        ):
            if options.get(name) is not None and bool(options[name]) is not only:
                raise ValueError(
                    f"{name}={options[name]!r} is not supported: tiling needs {name}={only}; leave it out"
                )

    def _setting(self, name: str, overrides: dict[str, Any]) -> Any:
        value = overrides.get(name)
        return getattr(self, name) if value is None else value

    def geometry(self, **overrides: Any) -> Geometry:
        """The settings that decide tiles and token counts, with overrides for one call.

        Args:
            **overrides: any of the processor's settings.

        Returns:
            The geometry.

        Raises:
            ValueError: if a tile is not a square, or has no whole patch.
        """
        setting = self._setting
        size = setting("size", overrides)
        height, width = size["height"], size["width"]
        if height != width or height is None:
            raise ValueError(f"size={height} x {width}: a tile is a square; pass equal height and width")
        patch = setting("patch_size", overrides)
        if patch > height:
            raise ValueError(f"patch_size={patch} is more than the tile's side of {height}; pass that of the tower")
        return Geometry(
            tile_size=height,
            patches_per_side=height // patch,
            pinpoints=setting("image_grid_pinpoints", overrides),
            max_tiles=setting("max_tiles", overrides),
            newline_position=setting("newline_position", overrides),
            single_tile_newline=setting("single_tile_newline", overrides),
        )

    @staticmethod
    def _cut(picture: Image.Image, geometry: Geometry, resample: PILImageResampling) -> np.ndarray:
        """A picture as base tile and tiles, (tiles, 3, side, side) bytes."""
        side = geometry.tile_size
        canvas_size = best_resolution((picture.height, picture.width), geometry.pinpoints)
        height, width = fitted_size((picture.height, picture.width), canvas_size)
        canvas = Image.new("RGB", (canvas_size[1], canvas_size[0]))
        corner = ((canvas_size[1] - width) // 2, (canvas_size[0] - height) // 2)
        canvas.paste(picture.resize((width, height), resample), corner)
        down, across = canvas_size[0] // side, canvas_size[1] // side
        tiles = np.empty((1 + down * across, 3, side, side), np.uint8)
        tiles[0] = np.asarray(picture.resize((side, side), resample)).transpose(2, 0, 1)
        grid = np.asarray(canvas).reshape(down, side, across, side, 3)
        tiles[1:].reshape(down, across, 3, side, side)[:] = grid.transpose(0, 2, 4, 1, 3)
        return tiles

    @staticmethod
    def _square(picture: Image.Image, geometry: Geometry, resample: PILImageResampling) -> np.ndarray:
        """A picture padded to a grey square as its only tile, (1, 3, side, side) bytes."""
        longest = max(picture.size)
        square = Image.new("RGB", (longest, longest), PAD_COLOUR)
        square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
        resized = square.resize((geometry.tile_size, geometry.tile_size), resample)
        return np.asarray(resized).transpose(2, 0, 1)[None]

    def preprocess_video(
        self, frames: Sequence[Any], name: str = "video", return_tensors: str | TensorType | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Turn a video, given as its frames, into one stretched tile per frame.

        Args:
            frames: pictures in order; more than `max_video_frames` are sampled uniformly.
            name: what messages call the video.
            return_tensors: as everywhere in transformers.
            **kwargs: overrides of the processor's settings.

        Returns:
            `pixel_values_videos` (frames, 3, side, side), `video_frame_counts` (1,) and `num_video_tokens`, a list.

        Raises:
            TypeError: for an unknown setting.
            ValueError: if there is no frame or one cannot be read, or for a setting that breaks a rule.
        """
        if len(frames) == 0:
            raise ValueError(f"{name} has no frames; give at least one picture")
        known = self.valid_kwargs.__annotations__
        for option in sorted(kwargs.keys() - known.keys()):
            close = difflib.get_close_matches(option, known, n=1)
            raise TypeError(f"a video takes no {option!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        kwargs = self._standardize_kwargs(**{"default_to_square": True, **kwargs})
        self._refuse_unsupported(kwargs)
        geometry = self.geometry(**kwargs)
        limit, max_pixels, resample = (
            self._setting(option, kwargs) for option in ("max_video_frames", "max_image_pixels", "resample")
        )
        chosen: Sequence[int] = range(len(frames))
        if len(frames) > limit:
            chosen = np.linspace(0, len(frames) - 1, limit, dtype=int).tolist()
        side = (geometry.tile_size, geometry.tile_size)

        def stretch(index: int) -> np.ndarray:
            frame = open_picture(frames[index], f"{name}, frame {index}", max_pixels).resize(side, resample)
            return np.asarray(frame).transpose(2, 0, 1)[None]

        pixels = _in_threads(stretch, chosen)
        scaling = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        table = _value_table(*(self._setting(option, kwargs) for option in scaling))
        count = video_token_count(len(pixels), geometry.patches_per_side, geometry.newline_position)
        data = {"pixel_values_videos": _apply_table(pixels, table), "video_frame_counts": [len(pixels)]}
        features = BatchFeature(data, tensor_type=return_tensors)
        features["num_video_tokens"] = [count]
        return features


def _check_canvases(geometry: Geometry) -> None:
    """Refuse canvases that cannot be cut into tiles."""
    for canvas in geometry.pinpoints:
        if any(side % geometry.tile_size for side in canvas):
            raise ValueError(
                f"image_grid_pinpoints has {canvas!r:.80}; each entry is [height, width] in multiples of the tile's "
                f"side {geometry.tile_size}"
            )


def count_image_tokens(image_size: tuple[int, int], tiles: int, geometry: Geometry) -> int:
    """Tokens of one picture: its base tile, and the tiled map or one newline.

    Args:
        image_size: (height, width) in pixels.
        tiles: tiles it was cut into, the base tile included.
        geometry: of the image processor.

    Returns:
        The number of placeholders it needs.
    """
    base = geometry.patches_per_side**2
    if tiles == 1:
        return base + int(geometry.single_tile_newline)
    layout = tile_layout(
        image_size, geometry.pinpoints, geometry.tile_size, geometry.patches_per_side, geometry.max_tiles
    )
    return base + layout.num_grid_tokens


def _value_table(
    do_rescale: bool, rescale_factor: float, do_normalize: bool, mean: list[float], std: list[float]
) -> np.ndarray:
    """What each of the 256 byte values becomes in each channel, (3, 256) float32, rounded where upstream rounds."""
    values = np.tile(np.arange(256, dtype=np.float64), (3, 1))
    if do_rescale:
        values = values * rescale_factor
    values = values.astype(np.float32)
    if do_normalize:
        values = (values - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    return values


def _in_threads(work: Callable[[Any], np.ndarray], jobs: Sequence[Any]) -> list[np.ndarray]:
    """The results of independent pieces of work in their order; Pillow and numpy let threads run side by side."""
    threads = min(len(jobs), torch.get_num_threads())
    if threads < 2:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, jobs))


def _apply_table(pixels: Sequence[np.ndarray], table: np.ndarray) -> np.ndarray:
    """(tiles, 3, side, side) bytes of each picture -> (tiles of all, 3, side, side) float32."""
    out = np.empty((sum(map(len, pixels)), *pixels[0].shape[1:]), dtype=np.float32)
    for tile, values in zip(chain.from_iterable(pixels), out, strict=True):
        for channel in range(3):  # plane by plane, which stay in a processor's cache
            np.take(table[channel], tile[channel], out=values[channel], mode="clip")
    return out


__all__ = ["LladaVImageProcessor", "open_encoded", "open_picture"]
