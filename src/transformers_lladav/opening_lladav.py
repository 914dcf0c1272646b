"""What users call a picture, opened: the header is read and the size checked before anything is decoded."""

import base64
import io
import os
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_transforms import to_pil_image
from transformers.image_utils import infer_channel_dimension_format

# Pillow leaves these to others: Ghostscript runs the program that an EPS file is, and Windows plays a WMF.
FOREIGN_FORMATS = ("EPS", "WMF")
FETCH_SECONDS = 60  # without a byte


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
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        usual = not {1, 3}.isdisjoint({pixels.shape[0], pixels.shape[-1]})
        order = infer_channel_dimension_format(pixels, (1, 3) if usual else (4,))  # the fourth is transparency
        return to_pil_image(pixels, input_data_format=order)
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
