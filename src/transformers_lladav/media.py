"""The pictures and videos that records name: where they may lie, how large they are, the frames of a video file."""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .image_processing_lladav import LladaVImageProcessor, open_encoded, open_picture
from .record_files import PICTURE_SUFFIXES, RecordError, is_picture_name, named, shown

MAX_IMAGE_PIXELS: int = LladaVImageProcessor.max_image_pixels
MAX_FRAMES: int = LladaVImageProcessor.max_video_frames

Picture = str | Image.Image
Video = str | list[Picture]
Size = tuple[int, int]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class MediaFolder:
    """The folder that pictures and videos lie in, and what a record may name beyond it.

    Attributes:
        root: relative paths start here.
        allow_outside: whether paths may lead out of the folder: by `..`, absolutely, or through links.
        allow_urls: whether a picture may be an http(s) URL, which is fetched when the picture is opened.
    """

    root: Path
    allow_outside: bool = False
    allow_urls: bool = False

    @cached_property
    def _resolved_root(self) -> Path:
        return self.root.resolve()

    def picture(self, value: Any) -> Picture:
        """Find a picture.

        Args:
            value: a path, an http(s) or data URL, a PIL image, or a dictionary with "bytes" or "path", as the
                datasets library has them.

        Returns:
            The PIL image, the URL, or the resolved path.

        Raises:
            RecordError: if it is none of these, leads out of the folder, is missing or empty.
        """
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
            return _decoded(value["bytes"]) if value.get("bytes") else self.picture(value["path"])
        text = _as_text(value, "picture")
        if text.startswith("data:image/"):
            return text
        if text.startswith(("http://", "https://")):
            if not self.allow_urls:
                raise RecordError(
                    f"the picture {shown(text)} is a URL, and URLs are not fetched; download it, or pass "
                    "allow_urls=True (--allow-urls)"
                )
            return text
        path, mode, size = self._find(text, "picture")
        if not S_ISREG(mode):
            raise RecordError(f"the picture {shown(text)} is {_what(mode)}, not a file")
        if size == 0:
            raise RecordError(f"the picture {shown(text)} is an empty file (0 bytes)")
        return str(path)

    def video(self, value: Any) -> Video:
        """Find a video.

        Args:
            value: the path of a video file or of a folder of frames, or a list of frames, each as `picture` takes it.

        Returns:
            The path of a file, or the frames; those of a folder are in the order of their names, numbers in them
            counted as numbers.

        Raises:
            RecordError: if it is none of these, leads out of the folder, is missing or has no frames.
        """
        if isinstance(value, list | tuple):
            if not value:
                raise RecordError("the video has no frames: its list is empty")
            return [self.picture(frame) for frame in value]
        text = _as_text(value, "video")
        path, mode, _ = self._find(text, "video")
        if S_ISREG(mode):
            return str(path)
        if not S_ISDIR(mode):
            raise RecordError(f"the video {shown(text)} is {_what(mode)}, not a file or a folder")
        try:
            frames = sorted(filter(is_picture_name, path.iterdir()), key=_natural)
        except OSError as error:
            raise RecordError(f"the video {shown(text)} cannot be read: {error.strerror}") from error
        if not frames:
            suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
            raise RecordError(f"the video {shown(text)} is a folder without frames ({suffixes})")
        return [self.picture(str(frame)) for frame in frames]

    def _find(self, text: str, kind: str) -> tuple[Path, int, int]:
        """The resolved path of something, its mode and its size in bytes."""
        if _SCHEME.match(text):
            raise RecordError(f"the {kind} {shown(text)} is a URL of a kind that is not read; give a path")
        try:
            path = (self.root / text).resolve()
            if not self.allow_outside and not path.is_relative_to(self._resolved_root):
                raise RecordError(
                    f"the {kind} {shown(text)} lies outside the folder {self._resolved_root}; move it there, set the "
                    "picture folder (--image-folder), or pass allow_outside=True (--allow-outside) if you trust the "
                    "data"
                )
            status = path.stat()
        except RecordError:
            raise
        except FileNotFoundError as error:
            raise RecordError(f"the {kind} {shown(text)} is missing: there is no {path}") from error
        except OSError as error:
            raise RecordError(f"the {kind} {shown(text)} cannot be read: {error.strerror}") from error
        except (ValueError, RuntimeError) as error:  # a zero byte, half a character; a ring of links
            raise RecordError(f"the {kind} {shown(text)} is not a path: {error}") from error
        return path, status.st_mode, status.st_size


def _as_text(value: Any, kind: str) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise RecordError(f"a {kind} is {named(value)}, not a path")
    if not value.strip():
        raise RecordError(f"the path of a {kind} is empty")
    return value


def _what(mode: int) -> str:
    return "a folder" if S_ISDIR(mode) else "a device or pipe"


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts frame2 before frame10."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", path.stem)
    return [(int(piece), "") if piece[0] in "0123456789" else (-1, piece) for piece in pieces], path.name


def _decoded(content: Any) -> Image.Image:
    try:
        picture = open_encoded(io.BytesIO(content))
        if picture.width * picture.height > MAX_IMAGE_PIXELS:  # turning decodes
            raise ValueError(
                f"{picture.width} x {picture.height} pixels are more than {MAX_IMAGE_PIXELS}; write the picture to a "
                "file, for which max_image_pixels can be raised"
            )
        ImageOps.exif_transpose(picture, in_place=True)
        return picture
    except Exception as error:  # whatever a decoder meets in foreign bytes
        raise RecordError(f"the bytes of a picture cannot be read: {str(error) or repr(error)}") from error


def media_parts(messages: Sequence[Mapping[str, Any]], kind: str) -> list[Any]:
    """The pictures ("image") or videos ("video") of messages, in order."""
    return [part[kind] for message in messages for part in message["content"] if part["type"] == kind]


def check_media(
    messages: Sequence[Mapping[str, Any]], max_image_pixels: int = MAX_IMAGE_PIXELS, decode: bool = False
) -> list[Size]:
    """Look at every picture and frame.

    Args:
        messages: of an example.
        max_image_pixels: larger pictures are refused before decoding.
        decode: read all pixels; without it only the headers of files are looked at.

    Returns:
        (height, width) of each picture, upright; frames are not among them.

    Raises:
        RecordError: if one cannot be read, has no pixels or too many, or a video file cannot be opened.
        ImportError: if there is a video file and PyAV is not installed.
    """
    pictures = media_parts(messages, "image")
    sizes = [picture_size(p, f"picture {i}", max_image_pixels, decode) for i, p in enumerate(pictures, start=1)]
    for number, video in enumerate(media_parts(messages, "video"), start=1):
        if not isinstance(video, str):
            for index, frame in enumerate(video):
                picture_size(frame, f"video {number}, frame {index}", max_image_pixels, decode)
        elif not (sum(1 for _ in _decode_frames(video)) if decode else frame_count(video)):
            raise RecordError(f"the video {shown(video)} has no frames")
    return sizes


def picture_size(source: Picture, name: str, max_image_pixels: int = MAX_IMAGE_PIXELS, decode: bool = False) -> Size:
    """The size of a picture as a model gets it: upright.

    Args:
        source: a path, a URL or a PIL image.
        name: what messages call it.
        max_image_pixels: larger pictures are refused.
        decode: read all pixels, which finds files that are cut off.

    Returns:
        (height, width).

    Raises:
        RecordError: if it cannot be read, or is too large.
    """
    try:
        if not decode and (size := _header_size(source)) and 0 < size[0] * size[1] <= max_image_pixels:
            return size
        local = isinstance(source, str) and not source.startswith(("data:", "http://", "https://"))
        picture = open_picture(Path(str(source)) if local else source, name, max_image_pixels)
    except Exception as error:  # decoders of foreign files raise anything
        reason = str(error) if isinstance(error, ValueError) else f"{name} cannot be read as a picture: {error!r}"
        raise RecordError(reason) from error
    return picture.height, picture.width


def _header_size(source: Picture) -> Size | None:
    """The size that a header tells; none where it cannot be read, which opening the picture explains."""
    if isinstance(source, Image.Image):
        return source.height, source.width
    try:
        with open_encoded(source) as picture:
            sideways = picture.getexif().get(_ORIENTATION) in _SIDEWAYS
            return (picture.width, picture.height) if sideways else (picture.height, picture.width)
    except Exception:  # decoders of foreign files raise anything
        return None


def frame_count(path: str) -> int:
    """The number of frames of a video file.

    Args:
        path: the file.

    Returns:
        What the file says, or what is counted where it says nothing.

    Raises:
        RecordError: if it is no video that can be read.
        ImportError: if PyAV is not installed.
    """
    av = _pyav()
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            return stream.frames or sum(1 for packet in container.demux(stream) if packet.dts is not None)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise RecordError(f"the video {shown(path)} cannot be read: {error}") from error


def read_frames(path: str, count: int = MAX_FRAMES) -> list[Image.Image]:
    """Read frames of a video file, spread evenly from the first to the last.

    Args:
        path: the file.
        count: how many; a shorter video gives all it has.

    Returns:
        The frames.

    Raises:
        RecordError: if it is no video that can be read, or has no frames.
        ImportError: if PyAV is not installed.
    """
    total = frame_count(path)
    wanted = set(np.linspace(0, total - 1, min(count, total), dtype=int).tolist())
    frames = []
    for index, frame in enumerate(_decode_frames(path)):
        if index in wanted:
            frames.append(frame.to_image())
        if len(frames) == len(wanted):
            break
    if not frames:
        raise RecordError(f"the video {shown(path)} has no frames")
    return frames


def _decode_frames(path: str) -> Iterator[Any]:
    av = _pyav()
    try:
        with av.open(path) as container:
            yield from container.decode(video=0)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise RecordError(f"the video {shown(path)} cannot be decoded: {error}") from error


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "video files need PyAV: pip install 'transformers_lladav[video]'; a folder of frames needs nothing"
        ) from error
    return av


def load_videos(messages: Sequence[dict[str, Any]], count: int = MAX_FRAMES) -> list[dict[str, Any]]:
    """Replace the video files of messages by their frames, as the processor takes them.

    Args:
        messages: of an example.
        count: frames of each file, spread evenly.

    Returns:
        Messages whose videos are lists of frames; everything else is the same object.

    Raises:
        RecordError: if a video cannot be read.
        ImportError: if there is a video file and PyAV is not installed.
    """

    def loaded(part: dict[str, Any]) -> dict[str, Any]:
        file = part.get("video") if part["type"] == "video" else None
        return {**part, "video": read_frames(file, count)} if isinstance(file, str) else part

    return [{**message, "content": [loaded(part) for part in message["content"]]} for message in messages]
