"""Pictures from people one does not know: what their headers say is looked at before anything is decoded."""

import io
from pathlib import Path

from PIL import Image, ImageOps

# Formats whose decoders run nothing but Pillow's own code (EPS would start Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class TooLargeError(ValueError):
    """A picture has more bytes or pixels than are allowed."""


def open_untrusted(source: bytes | Path, name: str, max_pixels: int) -> Image.Image:
    """Read the header of a picture.

    Args:
        source: an encoded picture, or the path of one.
        name: what messages call it.
        max_pixels: more are refused.

    Returns:
        The picture, not decoded.

    Raises:
        TooLargeError: if it has too many pixels.
        ValueError: if it is no picture in one of `FORMATS`.
    """
    try:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"{name} is too large: {error}") from error
    except Exception as error:  # decoders of foreign bytes raise anything
        raise ValueError(f"{name} is no picture in one of the formats {', '.join(FORMATS)}") from error
    width, height = picture.size
    if width * height > max_pixels:
        raise TooLargeError(
            f"{name} has {width} x {height} pixels, and {max_pixels:,} are allowed; shrink it, or raise the limit "
            "where the server is started"
        )
    return picture


def decode_untrusted(source: bytes | Path, name: str, max_pixels: int) -> Image.Image:
    """Decode a picture.

    Args:
        source: an encoded picture, or the path of one.
        name: what messages call it.
        max_pixels: more are refused before decoding.

    Returns:
        The picture, upright, in RGB.

    Raises:
        TooLargeError: if it has too many pixels.
        ValueError: if it is no picture in one of `FORMATS`, or is cut off.
    """
    with open_untrusted(source, name, max_pixels) as picture:
        try:
            return ImageOps.exif_transpose(picture).convert("RGB")
        except Exception as error:  # as above
            raise ValueError(f"{name} cannot be decoded: {str(error) or repr(error)}") from error
