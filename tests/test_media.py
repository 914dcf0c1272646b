"""Pictures and videos that records name: where they may lie, their sizes, the frames of video files."""

import io
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

import parity
from transformers_lladav.media import MediaFolder, check_media, frame_count, load_videos, picture_size, read_frames
from transformers_lladav.record_files import RecordError, shown

LANDSCAPE = parity.FOLDER / "images" / "a1_landscape.jpg"


def refused(sentence):
    return pytest.raises(RecordError, match=re.escape(sentence))


@pytest.fixture
def folder(tmp_path):
    """A folder with a picture, a secret beside it, and links to both."""
    root = tmp_path / "data"
    root.mkdir()
    for place in (root / "cat.png", tmp_path / "secret.png"):
        Image.new("RGB", (6, 4)).save(place)
    (root / "inside.png").symlink_to(root / "cat.png")
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    (root / "ring.png").symlink_to(root / "ring.png")
    (root / "empty.png").touch()
    (root / "frames").mkdir()
    (root / "nothing").mkdir()
    for number in (10, 9, 1):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / "frames" / f"frame{number}.png")
    (root / "frames" / "notes.txt").write_text("no frame")
    return root


def test_relative_and_absolute_paths_and_links_within_the_folder_are_found(folder):
    expected = str(folder / "cat.png")
    media = MediaFolder(folder)
    for value in ("cat.png", "frames/../cat.png", expected, folder / "cat.png", "inside.png", {"path": "cat.png"}):
        assert media.picture(value) == expected


@pytest.mark.parametrize("value", ["../secret.png", "outside.png", "frames/../../secret.png", "absolute"])
def test_a_path_out_of_the_folder_needs_permission(folder, value):
    secret = folder.parent / "secret.png"
    value = str(secret) if value == "absolute" else value
    with refused(
        f"the picture {shown(value)} lies outside the folder {folder}; move it there, set the picture folder "
        "(--image-folder), or pass allow_outside=True (--allow-outside) if you trust the data"
    ):
        MediaFolder(folder).picture(value)
    with refused("the video"):
        MediaFolder(folder).video(value)
    assert MediaFolder(folder, allow_outside=True).picture(value) == str(secret)


def test_whether_a_file_outside_exists_is_not_told(folder):
    for value in ("../secret.png", "../nobody.png"):
        with refused("lies outside"):
            MediaFolder(folder).picture(value)


def test_a_frame_that_links_outside_is_refused(folder):
    (folder / "frames" / "frame2.png").symlink_to(folder.parent / "secret.png")
    with refused("lies outside"):
        MediaFolder(folder).video("frames")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("dog.png", "the picture 'dog.png' is missing: there is no "),
        ("frames", "the picture 'frames' is a folder, not a file"),
        ("empty.png", "the picture 'empty.png' is an empty file (0 bytes)"),
        ("", "the path of a picture is empty"),
        (" ", "the path of a picture is empty"),
        (None, "a picture is None, not a path"),
        (7, "a picture is 7, not a path"),
        (float("nan"), "a picture is NaN (a missing value), not a path"),
        ({"path": None}, "a picture is {'path': None}, not a path"),
        ("a\0b", "the picture 'a\\x00b' is not a path: embedded null byte"),
        ("\ud800.png", "the picture '\\ud800.png' is not a path: "),
        ("x" * 5000, "cannot be read: File name too long"),
        ("file:///etc/passwd", "the picture 'file:///etc/passwd' is a URL of a kind that is not read; give a path"),
        ({"bytes": b"nonsense"}, "the bytes of a picture cannot be read: cannot identify image file"),
        ({"bytes": 7}, "the bytes of a picture cannot be read: "),
        (
            "https://host/cat.png",
            "the picture 'https://host/cat.png' is a URL, and URLs are not fetched; download it, or pass "
            "allow_urls=True (--allow-urls)",
        ),
    ],
)
def test_what_is_no_picture_says_why(folder, value, sentence):
    with refused(sentence):
        MediaFolder(folder).picture(value)


def test_a_ring_of_links_and_a_pipe_are_refused(folder):
    with refused("the picture 'ring.png'"):
        MediaFolder(folder).picture("ring.png")
    os.mkfifo(folder / "pipe.png")
    with refused("the picture 'pipe.png' is a device or pipe, not a file"):
        MediaFolder(folder).picture("pipe.png")
    with refused("the video 'pipe.png' is a device or pipe, not a file or a folder"):
        MediaFolder(folder).video("pipe.png")


def test_urls_are_kept_when_allowed_and_data_urls_always(folder):
    assert MediaFolder(folder, allow_urls=True).picture("http://host/cat.png") == "http://host/cat.png"
    assert MediaFolder(folder).picture("data:image/png;base64,AAAA") == "data:image/png;base64,AAAA"


def test_pictures_in_memory_are_kept_and_bytes_are_opened_upright(folder):
    picture = Image.new("RGB", (3, 2))
    assert MediaFolder(folder).picture(picture) is picture
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", exif=exif)
    assert MediaFolder(folder).picture({"bytes": buffer.getvalue(), "path": "gone.jpg"}).size == (2, 3)


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(folder):
    names = [path.rsplit("/", 1)[1] for path in MediaFolder(folder).video("frames")]
    assert names == ["frame1.png", "frame9.png", "frame10.png"]
    assert MediaFolder(folder).video(["frames/frame9.png", "cat.png"]) == [
        str(folder / "frames" / "frame9.png"),
        str(folder / "cat.png"),
    ]


def test_a_folder_of_frames_that_may_not_be_listed_is_a_bad_record(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder), "iterdir", refuse)
    with refused("the video 'frames' cannot be read: Permission denied"):
        MediaFolder(folder).video("frames")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "the video has no frames: its list is empty"),
        ("nothing", "the video 'nothing' is a folder without frames (.bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, "),
        ("clip.mp4", "the video 'clip.mp4' is missing: there is no "),
        (
            "https://host/clip.mp4",
            "the video 'https://host/clip.mp4' is a URL of a kind that is not read; give a path",
        ),
        (3, "a video is 3, not a path"),
        (["cat.png", 3], "a picture is 3, not a path"),
    ],
)
def test_what_is_no_video_says_why(folder, value, sentence):
    with refused(sentence):
        MediaFolder(folder).video(value)


def test_the_header_tells_the_upright_size(tmp_path):
    assert picture_size(str(LANDSCAPE), "picture 1") == (400, 600)
    assert picture_size(Image.open(LANDSCAPE), "picture 1") == (400, 600)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
        turned = str(tmp_path / "turned.jpg")
        assert (
            picture_size(turned, "p")
            == picture_size(turned, "p", decode=True)
            == ((6, 4) if orientation > 4 else (4, 6))
        )


def test_a_picture_that_is_cut_off_is_found_by_decoding_only(tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(LANDSCAPE.read_bytes()[:4000])
    assert picture_size(str(cut), "picture 1") == (400, 600)
    with refused(f"picture 1 ({cut}) cannot be read as a picture: image file is truncated"):
        picture_size(str(cut), "picture 1", decode=True)


@pytest.mark.parametrize("decode", [False, True])
def test_unreadable_and_too_large_pictures_are_named(tmp_path, decode):
    (tmp_path / "no.png").write_bytes(b"no picture")
    with refused(f"picture 1 ({tmp_path / 'no.png'}) cannot be read as a picture: cannot identify image file"):
        picture_size(str(tmp_path / "no.png"), "picture 1", decode=decode)
    with refused(
        f"picture 2 ({LANDSCAPE}) has 600 x 400 = 240000 pixels, more than max_image_pixels=239999; pass "
        "max_image_pixels=240000 if you trust it"
    ):
        picture_size(str(LANDSCAPE), "picture 2", 239_999, decode)
    assert picture_size(str(LANDSCAPE), "picture 2", 240_000, decode) == (400, 600)


def test_media_of_messages_are_all_looked_at(tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    frame, bad = Image.new("RGB", (3, 2)), str(tmp_path / "no.png")
    content = [{"type": "image", "image": frame}, {"type": "text", "text": "a"}, {"type": "video", "video": [frame]}]
    messages = [{"role": "user", "content": content}] * 2
    assert check_media(messages) == [(2, 3), (2, 3)]
    with refused(f"video 1, frame 1 ({bad}) cannot be read as a picture"):
        check_media([{"role": "user", "content": [{"type": "video", "video": [frame, bad]}]}])


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A video file of twelve frames, the n-th of brightness 20 n."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("clips") / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 20 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def brightness(frames):
    return [round(np.asarray(frame).mean() / 20) for frame in frames]


def test_frames_of_a_video_file_are_spread_evenly_over_it(clip):
    assert frame_count(clip) == 12
    assert brightness(read_frames(clip, 3)) == [0, 5, 11]
    assert brightness(read_frames(clip, 12)) == brightness(read_frames(clip, 99)) == list(range(12))
    assert brightness(read_frames(clip, 1)) == [0]
    assert read_frames(clip, 1)[0].size == (32, 16)


def test_video_files_in_messages_become_frames(clip):
    text, frames = {"type": "text", "text": "a"}, [Image.new("RGB", (3, 2))]
    content = [{"type": "video", "video": clip}, text, {"type": "video", "video": frames}]
    (message,) = load_videos([{"role": "user", "content": content}], 2)
    assert brightness(message["content"][0]["video"]) == [0, 11]
    assert message["content"][1] is text
    assert message["content"][2]["video"] is frames
    assert content[0]["video"] == clip


@pytest.mark.parametrize("decode", [False, True])
def test_a_file_that_is_no_video_is_refused(tmp_path, decode):
    pytest.importorskip("av")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with refused(f"the video {shown(str(bad))} cannot be "):
        check_media([{"role": "user", "content": [{"type": "video", "video": str(bad)}]}], decode=decode)


def test_without_pyav_a_video_file_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        ImportError, match=re.escape("video files need PyAV: pip install 'transformers_lladav[video]'")
    ):
        check_media([{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}]}])
