"""Pictures of strangers: refused by their headers with the reason, before a decoder sees them.

More of it is tested where requests are read.
"""

import io

import pytest
from PIL import Image

from transformers_lladav.untrusted_pictures import TooLargeError, decode_untrusted, open_untrusted


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_bytes_and_files_are_the_same(tmp_path):
    content = encoded(Image.new("LA", (4, 3), (7, 255)))
    (tmp_path / "picture").write_bytes(content)
    for source in (content, tmp_path / "picture"):
        picture = decode_untrusted(source, "it", 12)
        assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (4, 3), (7, 7, 7))


def test_too_large_is_told_from_no_picture():
    content = encoded(Image.new("RGB", (4, 3)))
    with pytest.raises(TooLargeError, match="it has 4 x 3 pixels, and 11 are allowed"):
        open_untrusted(content, "it", 11)
    for nothing in (b"", b"GIF89a", content[:10], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(ValueError, match="it is no picture in one of the formats PNG, JPEG") as refused:
            open_untrusted(nothing, "it", 100)
        assert not isinstance(refused.value, TooLargeError)


def test_postscript_is_not_even_tried(monkeypatch):
    # Pillow would know it, and run Ghostscript to decode it.
    content = encoded(Image.new("RGB", (4, 3)), "EPS")
    assert Image.open(io.BytesIO(content)).format == "EPS"
    with pytest.raises(ValueError, match="is no picture"):
        decode_untrusted(content, "it", 100)
