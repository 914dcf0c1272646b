"""Pictures to tiles: choose a canvas, cut it, normalise. Pillow and numpy, on as many threads as torch may use.

LLaDA-V, arXiv:2505.16933, section 3 ("anyres"). Pixel values depend on Pillow's bicubic filter on 8-bit pictures;
another library's resize differs by up to one grey level.
"""

import base64
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, Literal, NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import to_pil_image
from transformers.image_utils import ImageInput, PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, auto_docstring

from .tiling_lladav import DEFAULT_PINPOINTS, best_resolution, fitted_size, tile_layout, video_token_count

PAD_COLOUR = (127, 127, 127)
# Pillow leaves these to others: Ghostscript runs the program that an EPS file is, and Windows plays a WMF.
FOREIGN_FORMATS = ("EPS", "WMF")
FETCH_SECONDS = 60  # without a byte


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


def open_picture(source: Any, name: str, max_pixels: int) -> Image.Image:
    """Turn whatever a user calls a picture into an upright RGB image.

    Args:
        source: a path, an http(s) or data URL, a PIL image, a numpy array or a torch tensor.
        name: what messages call it, such as "image 2".
        max_pixels: pictures with more are refused before decoding.

    Returns:
        The picture in mode RGB.

    Raises:
        ValueError: if it cannot be read, is empty, or is too large; names the picture, the limit and the way out.
        TypeError: if it is none of the accepted types.
    """
    if isinstance(source, str | os.PathLike):
        name = f"{name} ({str(source)[:200]})"
    if not (isinstance(source, str | os.PathLike | Image.Image | np.ndarray) or hasattr(source, "detach")):
        raise TypeError(f"a picture is a path, a URL, a PIL image or an array, not {type(source).__name__}")
    try:
        picture = _open(source, max_pixels)
        _check_size(picture.size, name, max_pixels)
        if not isinstance(source, Image.Image):
            picture = ImageOps.exif_transpose(picture)
        picture.load()
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except _SizeError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large to be decoded safely: {error} If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS and "
            f"max_image_pixels (now {max_pixels})"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} cannot be read as a picture: cannot identify image file; give PNG, JPEG or another format that "
            f"Pillow reads without the help of other programs (not {' or '.join(FOREIGN_FORMATS)})"
        ) from error
    except Exception as error:  # whatever a decoder meets in foreign bytes
        raise ValueError(f"{name} cannot be read as a picture: {str(error) or repr(error)}") from error


class _SizeError(ValueError):
    """A picture without pixels, or with too many."""


def open_encoded(file: Any) -> Image.Image:
    """Read the header of an encoded picture, of a format that Pillow decodes without other programs.

    Args:
        file: its path, or a file with its bytes.

    Returns:
        The picture, not decoded, as it was saved: not turned upright.

    Raises:
        Exception: whatever its decoder raises, mostly an `OSError`.
    """
    Image.init()  # learns the names of all formats
    return Image.open(file, formats=[kind for kind in Image.ID if kind not in FOREIGN_FORMATS])


def _open(source: Any, max_pixels: int) -> Image.Image:
    if isinstance(source, Image.Image):
        if source.format in FOREIGN_FORMATS and getattr(source, "tile", None):  # opened, and not decoded yet
            raise OSError(f"{source.format} is drawn by another program, which is not started; save it as PNG")
        return source
    if isinstance(source, os.PathLike) or (isinstance(source, str) and os.path.exists(source)):
        return open_encoded(source)
    if isinstance(source, str):
        if source.startswith("data:image/"):
            return open_encoded(io.BytesIO(_inline(source)))
        if source.startswith(("http://", "https://")):
            return open_encoded(io.BytesIO(_fetch(source, 8 * max_pixels + 2**20)))
        raise FileNotFoundError("there is no such file; give a path, an http(s) URL or a data:image/ URL")
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    return _from_array(source)


def _inline(url: str) -> bytes:
    """The bytes in a data URL."""
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise OSError("the data URL has no ';base64,' before the picture; write data:image/png;base64,...")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        raise OSError(f"the data URL is not base64: {error}") from error


def _fetch(url: str, most: int) -> bytes:
    """What a server sends, as long as a picture can be that is saved with 16 bits per channel and no compression."""
    with urlopen(Request(url, headers={"User-Agent": "lladav"}), timeout=FETCH_SECONDS) as answer:
        content: bytes = answer.read(most + 1)
    if len(content) > most:
        raise OSError(f"the server sends more than {most} bytes, which no allowed picture needs")
    return content


def _from_array(pixels: np.ndarray) -> Image.Image:
    if 0 in pixels.shape:
        raise OSError(f"an array of shape {pixels.shape} has no pixels")
    try:
        return to_pil_image(pixels[..., None] if pixels.ndim == 2 else pixels)
    except (ValueError, TypeError) as error:
        raise OSError(f"an array of shape {pixels.shape} and type {pixels.dtype}: {error}") from error


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise _SizeError(f"{name} has size {width} x {height}; both sides must be at least 1 pixel")
    if width * height > max_pixels:
        raise _SizeError(
            f"{name} has {width} x {height} = {width * height} pixels, more than max_image_pixels={max_pixels}; "
            f"pass max_image_pixels={width * height} if you trust it"
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

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open every picture of a nested list; see `open_picture` for what is accepted and raised."""
        if isinstance(image_url_or_urls, list | tuple):
            counter = iter(range(1, 1 << 30))
            return self._fetch_nested(image_url_or_urls, counter)
        return open_picture(image_url_or_urls, "image", self.max_image_pixels)

    def _fetch_nested(self, images: Sequence[Any], counter: Any) -> list[Any]:
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
        """
        return super().preprocess(images, **kwargs)

    def _preprocess_image_like_inputs(self, images: ImageInput, *args: Any, **kwargs: Any) -> BatchFeature:
        limit = kwargs.get("max_image_pixels") or self.max_image_pixels
        samples = images if isinstance(images, list | tuple) else [images]
        samples = [sample if isinstance(sample, list | tuple) else [sample] for sample in samples]
        counter = iter(range(1, 1 << 30))
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
            ValueError: if a tile is not a square.
        """
        setting = self._setting
        size = setting("size", overrides)
        height, width = size["height"], size["width"]
        if height != width or height is None:
            raise ValueError(f"size={height} x {width}: a tile is a square; pass equal height and width")
        return Geometry(
            tile_size=height,
            patches_per_side=height // setting("patch_size", overrides),
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
            ValueError: if there is no frame or one cannot be read.
        """
        if len(frames) == 0:
            raise ValueError(f"{name} has no frames")
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


__all__ = ["LladaVImageProcessor"]
