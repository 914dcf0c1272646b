"""What users call a picture, opened: the header is read and the size checked before anything is decoded."""

import base64
import io
import os
import time
from http.client import HTTPException
from typing import Any
from urllib import request as urls

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_transforms import to_pil_image
from transformers.image_utils import infer_channel_dimension_format

# Pillow leaves these to others: Ghostscript runs the program that an EPS file is, and Windows plays a WMF.
FOREIGN_FORMATS = ("EPS", "WMF")
FETCH_SECONDS, READ_BYTES = 120, 2**16


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
        kind = type(source).__name__
        raise TypeError(f"{name}: a picture is a path, a URL, a PIL image or an array, not {kind}")
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


class TooManyBytesError(OSError):
    """A server sends more than is taken."""


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
        if source[:11].lower() == "data:image/":
            return open_encoded(io.BytesIO(read_data_url(source)))
        if source.lower().startswith(("http://", "https://")):
            most = 8 * max_pixels + 2**20  # 16 bits per channel and no compression
            return open_encoded(io.BytesIO(fetch(source, most, FETCH_SECONDS)))
        raise FileNotFoundError("there is no such file; give a path, an http(s) URL or a data:image/ URL")
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    return _from_array(source)


def read_data_url(url: str) -> bytes:
    """Decode a picture that is written into its URL.

    Args:
        url: such as `data:image/png;base64,iVBO...`; line breaks and spaces between the characters do not count.

    Returns:
        The encoded picture.

    Raises:
        OSError: if it is none, or not base64.
    """
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise OSError("the data URL has no ';base64,' before the picture; write data:image/png;base64,...")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        raise OSError(f"the data URL is not base64: {error}") from error


def fetch(url: str, most: int, seconds: float) -> bytes:
    """Fetch a picture; redirections are followed to http and https alone, and a server that dawdles is left.

    Args:
        url: http or https.
        most: bytes that are taken.
        seconds: in which the whole picture must come.

    Returns:
        The encoded picture.

    Raises:
        TooManyBytesError: if the server sends more than `most` bytes.
        OSError: if it cannot be reached, refuses or takes longer.
    """
    content, end = bytearray(), time.monotonic() + seconds
    try:
        with _opener().open(urls.Request(url, headers={"User-Agent": "lladav"}), timeout=seconds) as answer:
            while len(content) <= most and (part := answer.read1(READ_BYTES)):
                content += part
                if time.monotonic() > end:
                    raise TimeoutError(f"it took longer than {seconds} s")
    except (ValueError, HTTPException) as error:
        raise OSError(str(error) or repr(error)) from error
    if len(content) > most:
        raise TooManyBytesError(f"the server sends more than {most} bytes, which no allowed picture needs")
    return bytes(content)


def _opener() -> urls.OpenerDirector:
    """Speaks http and https and nothing else, through the proxies of the environment."""
    proxies = {scheme: proxy for scheme, proxy in urls.getproxies().items() if scheme in ("http", "https")}
    opener = urls.OpenerDirector()
    for handler in (
        urls.ProxyHandler(proxies), urls.HTTPHandler(), urls.HTTPSHandler(), urls.HTTPRedirectHandler(),
        urls.HTTPErrorProcessor(), urls.HTTPDefaultErrorHandler(), urls.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


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
