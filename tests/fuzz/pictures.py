"""Pictures of strangers: the bytes of files, of data URLs, and arrays."""

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image, features

from fuzzing import Finding, attempt, damaged, outcome
from transformers_lladav import LladaVImageProcessor
from transformers_lladav.image_processing_lladav import open_picture
from transformers_lladav.media import MediaFolder, picture_size
from transformers_lladav.record_files import RecordError
from transformers_lladav.untrusted_pictures import decode_untrusted

MAX_PIXELS = 4096


def _encoded() -> tuple[bytes, ...]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("PNG", "RGB", {"exif": exif}), ("PNG", "P", {}), ("PNG", "LA", {}), ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "CMYK", {}), ("JPEG", "L", {"progressive": True}), ("GIF", "P", {}), ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "1", {"compression": "group4"}), ("TIFF", "I;16", {}),
        ("PPM", "RGB", {}), ("ICO", "RGB", {}), ("EPS", "RGB", {}), ("TGA", "RGB", {}), ("SGI", "RGB", {}),
    ]  # fmt: skip
    if features.check("webp"):
        kinds += [("WEBP", "RGB", {"exif": exif}), ("WEBP", "RGBA", {"lossless": True})]
    contents = []
    for kind, mode, options in kinds:
        buffer = io.BytesIO()
        if mode == "I;16":
            Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9)).save(buffer, kind)
        else:
            picture.convert(mode).save(buffer, kind, **options)
        contents.append(buffer.getvalue())
    frames = io.BytesIO()
    picture.save(frames, "GIF", save_all=True, append_images=[picture.rotate(90)])
    return (*contents, frames.getvalue(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"")


def png(width: int, height: int, depth: int, colour: int, body: bytes) -> bytes:
    """A PNG with right checksums, whatever its header says."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(body)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in chunks
    )


SIDES = st.integers(0, 70) | st.sampled_from((4096, 65535, 2**31 - 1, 2**32 - 1))
DEPTHS, COLOURS = st.sampled_from((1, 2, 4, 8, 16, 3, 255)), st.sampled_from((0, 2, 3, 4, 6, 7))
contents = damaged(_encoded()) | st.builds(png, SIDES, SIDES, DEPTHS, COLOURS, st.binary(max_size=99))
urls = st.builds(
    lambda kind, body, tail: f"data:image/{kind}{body}{tail}",
    st.sampled_from(("png;base64,", "jpeg;base64,", "png,", "svg+xml;utf8,", "", ";base64", "png;base64,,")),
    contents.map(lambda content: base64.b64encode(content).decode()),
    st.sampled_from(("", "=", "!", "\n", "é", "\ud800", "A")),
)
KINDS = (np.uint8, np.int16, np.float16, np.float64, np.bool_, np.complex64, np.dtype("U2"), np.object_)
arrays = st.builds(
    lambda shape, kind, fill: np.full(shape, fill, dtype=np.uint8).astype(kind),
    st.lists(st.integers(0, 5), max_size=5),
    st.sampled_from(KINDS),
    st.integers(0, 255),
)
STRATEGY = contents | urls | arrays
PROCESSOR = LladaVImageProcessor(size={"height": 28, "width": 28}, patch_size=14, image_grid_pinpoints=[[28, 56]])


def _check_picture(picture: Any) -> None:
    if isinstance(picture, Image.Image) and (
        picture.mode != "RGB" or not 0 < picture.width * picture.height <= MAX_PIXELS or picture.load() is None
    ):
        raise Finding(f"a picture of mode {picture.mode} and size {picture.size} came through")


def _check_file(content: bytes, place: Path) -> Any:
    """The same content as a file, as bytes, and as a data URL must be the same picture."""
    file = place / "picture"
    file.write_bytes(content)
    untrusted = attempt(decode_untrusted, content, "picture 1", MAX_PIXELS, refusals=ValueError)
    _check_picture(untrusted)
    folder = MediaFolder(place)
    attempt(picture_size, str(file), "picture 1", MAX_PIXELS, decode=True, refusals=RecordError)
    held = attempt(folder.picture, {"bytes": content}, refusals=RecordError)
    if isinstance(held, Image.Image):
        attempt(picture_size, held, "picture 1", MAX_PIXELS, decode=True, refusals=RecordError)
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    opened = [attempt(open_picture, source, "image 1", MAX_PIXELS, refusals=ValueError) for source in (file, url)]
    for picture in opened:
        _check_picture(picture)
    kinds = {isinstance(picture, Image.Image) for picture in opened}
    if len(kinds) > 1 or (kinds == {True} and opened[0].tobytes() != opened[1].tobytes()):
        raise Finding(f"a file and a data URL of the same bytes differ: {opened}")
    if isinstance(untrusted, Image.Image) and untrusted.tobytes() != opened[0].tobytes():
        raise Finding("the same bytes are two pictures")
    return opened[0]


def check(case: Any, place: Path) -> str:
    """Open it every way there is, and cut what could be opened into tiles."""
    if isinstance(case, bytes):
        picture = _check_file(case, place)
    else:
        picture = attempt(open_picture, case, "image 1", MAX_PIXELS)
        _check_picture(picture)
    if isinstance(picture, Exception):
        if "image 1" not in str(picture):
            raise Finding(f"the picture is not named: {picture}")
        return outcome(picture)
    tiles = PROCESSOR(picture, return_tensors="pt")["pixel_values"]
    if tuple(tiles.shape) != (3, 3, 28, 28) or not bool(tiles.isfinite().all()):
        raise Finding(f"tiles of shape {tuple(tiles.shape)}")
    return "taken"
