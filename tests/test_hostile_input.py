"""What fuzzing found and what people do on purpose is refused in words, or is only text.

Paths out of a folder and links are tested in test_media.py, hostile texts in pages in test_recording.py and
test_web_view.py, shard indexes in test_weights.py and test_corruptions.py.
"""

import base64
import io
import json
import pickle
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import EpsImagePlugin, Image
from safetensors.torch import save

import parity
from conftest import tiny_config
from picture_server import serving
from transformers_lladav import (
    BUNDLED_CHECKPOINT,
    LladaVConfig,
    LladaVGenerationConfig,
    LladaVImageProcessor,
    LladaVProcessor,
    media,
    record_files,
)
from transformers_lladav.adapter_fit import AdapterError, check_fit, read_base
from transformers_lladav.chat_template_lladav import build_chat_template
from transformers_lladav.data import Examples, read_examples
from transformers_lladav.image_processing_lladav import open_picture
from transformers_lladav.media import MediaFolder, picture_size
from transformers_lladav.official_config_lladav import config_problems
from transformers_lladav.official_folder_lladav import stored_shapes
from transformers_lladav.presets_lladav import find_preset
from transformers_lladav.record_files import DataError, RecordError
from transformers_lladav.untrusted_pictures import decode_untrusted
from transformers_lladav.verification import verify
from transformers_lladav.weights import INDEX, scan_folder

TEMPLATE = "{{ 7 * 7 }}{% for m in messages %}x{% endfor %}{# gone #}{{ messages.__class__.__mro__ }}"
LIMIT = 10_000


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width=2, height=2, extra=b"", body=None):
    """A PNG; without a body there is little behind its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(body or b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + rest


def data_url(content, head="data:image/png;base64,"):
    return head + base64.b64encode(content).decode()


@pytest.fixture
def eps(monkeypatch):
    """An EPS file; whoever asks Ghostscript to run it fails the test."""

    def run(*arguments, **options):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "EPS")
    return buffer.getvalue()


# Pictures


def test_the_size_of_a_data_url_is_checked_on_its_header_alone():
    with pytest.raises(ValueError, match="has 3000 x 2000 = 6000000 pixels, more than max_image_pixels=10000"):
        open_picture(data_url(png(3000, 2000)), "image 1", LIMIT)
    with pytest.raises(ValueError, match="too large to be decoded safely"):
        open_picture(data_url(png(60_000, 60_000)), "image 1", LIMIT)


def test_a_data_url_is_the_picture_of_its_file(tmp_path):
    content = png(body=b"\0\1\2\0\3\4")
    (tmp_path / "it.png").write_bytes(content)
    url = data_url(content)
    for source in (url, f"{url[:40]}\n {url[40:]}", tmp_path / "it.png"):
        assert open_picture(source, "it", LIMIT).tobytes() == bytes(v for v in (1, 2, 3, 4) for _ in range(3))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png", "no ';base64,' before the picture"),
        ("data:image/png,abc", "no ';base64,' before the picture"),
        ("data:image/svg+xml;utf8,<svg/>", "no ';base64,' before the picture"),
        ("data:image/png;base64,a!b", "is not base64"),
        ("data:image/png;base64,\ud800", "is not base64"),
        ("data:image/png;base64,", "cannot identify image file"),
        ("data:image/png;base64,aGk=", "cannot identify image file; give PNG, JPEG or another format"),
    ],
)
def test_a_data_url_without_a_picture_says_what_it_lacks(url, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        open_picture(url, "image 1", LIMIT)
    assert not isinstance(refused.value, UnicodeError)
    assert str(refused.value).startswith("image 1 (data:image/")


def test_an_eps_file_never_reaches_ghostscript(eps, tmp_path):
    file = tmp_path / "drawing.eps"
    file.write_bytes(eps)
    opened = Image.open(file)  # Pillow knows it
    assert opened.format == "EPS"
    folder = MediaFolder(tmp_path)
    for call in (
        lambda: open_picture(file, "image 1", LIMIT),
        lambda: open_picture(data_url(eps), "image 1", LIMIT),
        lambda: open_picture(opened, "image 1", LIMIT),
        lambda: LladaVImageProcessor()(opened),
        lambda: decode_untrusted(eps, "image 1", LIMIT),
        lambda: picture_size(str(file), "image 1", decode=True),
        lambda: folder.picture({"bytes": eps}),
    ):
        with pytest.raises(
            ValueError, match=r"cannot identify image file|EPS is drawn by another program|is no picture"
        ):
            call()


def test_text_in_a_picture_that_unpacks_without_end_is_refused():
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 * 2**20)))
    content = png(extra=bomb, body=b"\0\1\2\0\3\4")
    assert len(content) < 100_000
    with pytest.raises(ValueError, match=r"image 1 .* cannot be read as a picture: Decompressed data too large"):
        open_picture(data_url(content), "image 1", LIMIT)
    with pytest.raises(ValueError, match="image 1"):
        decode_untrusted(content, "image 1", LIMIT)


def test_bytes_that_lie_on_their_side_are_measured_before_they_are_turned(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("L", (30, 20)).save(buffer, "PNG", exif=exif)
    monkeypatch.setattr(media, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(RecordError, match="30 x 20 pixels are more than 599; write the picture to a file"):
        MediaFolder(Path()).picture({"bytes": buffer.getvalue()})
    monkeypatch.setattr(media, "MAX_IMAGE_PIXELS", 600)
    assert MediaFolder(Path()).picture({"bytes": buffer.getvalue()}).size == (20, 30)


@pytest.fixture
def site():
    """Serves a picture, one that is only a header, too much of nothing, and errors."""
    small = png(body=b"\0\1\2\0\3\4")
    pages = {"/it.png": small, "/header.png": png(3000, 2000), "/endless.png": bytes(8 * LIMIT + 2**20 + 1)}
    moved = {"/ftp": "ftp://127.0.0.1/x", "/file": "file:///etc/passwd", "/moved": "/it.png"}
    pages["http://elsewhere.invalid/it.png"] = small  # asked of it as a proxy
    with serving(pages, moved) as url:
        yield url


def test_a_picture_from_a_url_is_measured_before_it_is_decoded(site):
    for path in ("it.png", "moved"):
        assert open_picture(f"{site}/{path}", "image 1", LIMIT).size == (2, 2)
    for path, words in (
        ("header.png", "has 3000 x 2000 = 6000000 pixels, more than max_image_pixels=10000"),
        ("endless.png", "the server sends more than 1128576 bytes, which no allowed picture needs"),
        ("gone.png", "404"),
        ("ftp", "cannot be read as a picture"),
        ("file", "cannot be read as a picture"),
    ):
        with pytest.raises(ValueError, match=words):
            open_picture(f"{site}/{path}", "image 1", LIMIT)


def test_pictures_are_fetched_through_the_proxy_of_the_environment(site, monkeypatch):
    monkeypatch.setenv("http_proxy", site)
    monkeypatch.setenv("no_proxy", "")
    assert open_picture("http://elsewhere.invalid/it.png", "image 1", LIMIT).size == (2, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 0}, "patch_size=0 of the image processor must be a whole number of at least 1"),
        ({"max_tiles": True}, "max_tiles=True of the image processor must be"),
        ({"max_video_frames": -1}, "max_video_frames=-1 of the image processor"),
        ({"image_mean": [0.5]}, r"image_mean=\[0.5\] of the image processor must be three finite numbers"),
        ({"image_mean": [0, 0, float("nan")]}, "must be three finite numbers"),
        ({"image_std": [1, 0, 1]}, "must be three finite numbers other than 0"),
        ({"rescale_factor": float("inf")}, "must be a finite number"),
        ({"newline_position": "nowhere"}, "must be one of grid, frame, one_token, no_token"),
        ({"image_grid_pinpoints": [384]}, r"must be a list of \[height, width\]"),
        ({"image_grid_pinpoints": [[2**20, 2**20]]}, "at most 268435456 in a canvas"),
        ({"tiling": "tile"}, "tiling='tile' of the image processor must be one of auto, tiles, square"),
        ({"single_tile_newline": "no"}, "single_tile_newline='no' of the image processor must be True or False"),
        ({"patch_size": 385}, "patch_size=385 is more than the tile's side of 384"),
        ({"image_grid_pinpoints": [[384, 400]]}, r"image_grid_pinpoints has \[384, 400\]; .* of the tile's side 384"),
        ({"size": []}, r"size=\[\] of the image processor must be a height and a width"),
        ({"size": {"height": 2**30, "width": 2**30}}, "a height and a width in pixels, at most 16384"),
    ],
)
def test_settings_that_cut_no_picture_are_refused_when_they_are_read(settings, words):
    with pytest.raises(ValueError, match=words):
        LladaVImageProcessor.from_dict(settings)(Image.new("RGB", (3, 3)))


# Chats


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ("Hello", "a chat is a list of messages, not 'Hello'"),
        ({"role": "user"}, "a chat is a list of messages, not the dict"),
        (7, "a chat is a list of messages, not 7"),
        ([], "the chat has no messages; give at least one"),
        ([[]], "the chat 0 has no messages; give at least one"),
        (["Hello"], "message 0 is a str; give a dictionary with the keys role and content"),
        ([[{"role": "user", "content": "a"}], 5], "chat 1 is a list of messages, not 5"),
        ([{}], "message 0 has the role None; give a text such as 'user'"),
        ([[{"role": ["user"], "content": "a"}]], r"message 0 of chat 0 has the role the list \['user'\]"),
        ([{"role": "user", "content": 5}], "message 0 has the content 5; give a text or a list of parts"),
        ([{"role": "user", "content": [[[]]]}], "message 0 has the part the list"),
        (
            [{"role": "user", "content": ["a"]}],
            "message 0 has the part 'a'; give a dictionary such as {'type': 'text'",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a part of type text whose text is None"),
        ([{"role": "user", "content": "a\ud800"}], "message 0 holds '.ud800', half of a character"),
        ([{"role": "user", "content": [{"type": "tool"}]}], "the chat template cannot make a prompt of this chat"),
    ],
)
@pytest.mark.parametrize("sanitize", [True, False])
def test_what_is_no_chat_is_refused_by_its_message(chat, words, sanitize, processor):
    with pytest.raises((ValueError, TypeError), match=words) as refused:
        processor.apply_chat_template(chat, sanitize_control_tokens=sanitize)
    assert not isinstance(refused.value, UnicodeError)


def test_a_chat_nested_without_end_is_refused(processor):
    endless = []
    for _ in range(5000):
        endless = [endless]
    chat = [{"role": "user", "content": "a", "notes": endless}]
    for sanitize in (True, False):
        with pytest.raises(ValueError, match="nested too deeply"):
            processor.apply_chat_template(chat, sanitize_control_tokens=sanitize)


def test_template_syntax_in_a_chat_is_text(processor, tokenizer):
    chat = [
        {"role": "system", "content": TEMPLATE},
        {"role": "user", "content": [{"type": "text", "text": TEMPLATE}]},
        {"role": "assistant", "content": TEMPLATE},
    ]
    prompt = processor.apply_chat_template(chat)
    assert prompt.count(TEMPLATE) == 3
    ids = processor.apply_chat_template(chat, tokenize=True)[0]
    assert tokenizer.decode(ids).count(TEMPLATE) == 3


def test_template_syntax_in_the_default_system_prompt_is_text(processor):
    text = TEMPLATE + " ' \\ %} }} \n two"
    chat = [{"role": "user", "content": "a"}]
    prompt = processor.apply_chat_template(chat, chat_template=build_chat_template(text))
    assert prompt.startswith(f"<|startoftext|><|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>")


def test_template_syntax_in_a_table_and_in_file_names_is_text(tmp_path, processor):
    name = "{{ 7 * 7 }}.png"
    (tmp_path / name).write_bytes(png(body=b"\0\1\2\0\3\4"))
    (tmp_path / "train.csv").write_text(
        f'image,question,answer\n{name},"{TEMPLATE}","{TEMPLATE}"\n{{{{ x }}}}.png,a,b\n'
    )
    bad = []
    (example,) = read_examples(tmp_path / "train.csv", on_bad=bad.append)
    assert example.pictures == [str(tmp_path / name)]
    assert processor.apply_chat_template(example.messages).count(TEMPLATE) == 2
    assert "the picture '{{ x }}.png' is missing" in str(bad[0])


# Records


def test_a_key_that_stands_twice_is_refused_in_every_kind_of_file(tmp_path):
    twice = '{"question": "a", "answer": "b", "answer": "c"}'
    (tmp_path / "a.jsonl").write_text(twice + '\n{"question": "a", "answer": "b"}\n')
    bad = []
    assert len(list(read_examples(tmp_path / "a.jsonl", on_bad=bad.append))) == 1
    assert str(bad[0]) == (
        "a.jsonl:1: the line cannot be read as JSON: the key 'answer' stands twice in an object; remove one of them"
    )
    (tmp_path / "a.json").write_text(f"[{twice}]")
    with pytest.raises(DataError, match=r"a.json:1: the record cannot be read as JSON: the key 'answer' stands twice"):
        list(read_examples(tmp_path / "a.json"))


def test_a_line_without_end_is_refused_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "MAX_LINE", 100)
    good = '{"question": "a", "answer": "b"}\n'
    (tmp_path / "a.jsonl").write_text(good + '{"question": "' + "a" * 1000 + '", "answer": "b"}\n' + good)
    bad = []
    assert [example.source for example in read_examples(tmp_path / "a.jsonl", on_bad=bad.append)] == [
        "a.jsonl:1",
        "a.jsonl:3",
    ]
    assert str(bad[0]) == "a.jsonl:2: the line is longer than 100 bytes; split it, or name files"
    examples = Examples(tmp_path / "a.jsonl", skip_bad=True)
    assert [example.source for example in examples] == ["a.jsonl:1", "a.jsonl:3"]


def test_a_table_whose_header_does_not_end_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a" * (2**20 + 5))
    with pytest.raises(DataError, match=r"a.csv:1: the header is longer than 1048576 characters; is this a table"):
        list(read_examples(tmp_path / "a.csv"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp500"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_other_encodings_are_named_as_such(tmp_path, encoding, name):
    text = "question,answer\nä,ö\n" if name == "a.csv" else '{"question": "ä", "answer": "ö"}\n'
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"UTF-8|of no known kind|no column"):
        list(read_examples(tmp_path / name))


# Configurations


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_config": {"num_attention_heads": 0}}, "num_attention_heads=0 must be a whole number of at least 1"),
        ({"text_config": {"num_key_value_heads": 0}}, "num_key_value_heads=0 must be"),
        ({"text_config": {"rms_norm_eps": float("nan")}}, "rms_norm_eps=nan must be above 0 and at most 1"),
        ({"text_config": {"initializer_range": float("inf")}}, "initializer_range=inf must be a finite number"),
        ({"text_config": {"dtype": "{{ 7 * 7 }}"}}, "the configuration cannot be used: AttributeError"),
        ({"vision_config": {"patch_size": 0}}, "patch_size=0 must be"),
        ({"vision_config": {"patch_size": 999}}, "is less than patch_size=999"),
        ({"vision_config": {"model_type": "os.system"}}, "vision_config has model_type='os.system'"),
        ({"vision_config": {"model_type": []}}, r"vision_config has model_type=\[\]"),
        ({"image_grid_pinpoints": [5]}, "image_grid_pinpoints has 5; each entry is"),
        ({"image_grid_pinpoints": [["56", 56]]}, "image_grid_pinpoints has"),
    ],
)
def test_a_configuration_nobody_can_build_is_refused_in_words(change, words):
    content = tiny_config().to_dict()
    for name, value in change.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    with pytest.raises(Exception, match=words) as refused:  # `strict` has an error of its own
        LladaVConfig.from_dict(content)
    assert not isinstance(refused.value, AttributeError | LookupError | ArithmeticError)


@pytest.mark.parametrize("settings", [{"eos_token_id": [[]]}, {"eos_token_id": [-1]}, {"mask_token_id": "a"}])
def test_tokens_of_the_loop_are_whole_numbers(settings):
    with pytest.raises(ValueError, match=r"_token_id=.* must be a whole number of at least 0"):
        LladaVGenerationConfig(**settings)


@pytest.mark.parametrize("name", [None, 7, ["exact"]])
def test_a_preset_is_a_name(name):
    with pytest.raises(ValueError, match=f"preset={re.escape(repr(name))} is not known; choose one of exact"):
        find_preset(name)


def test_a_processor_file_in_another_encoding_is_named(tmp_path):
    folder = Path(shutil.copytree(BUNDLED_CHECKPOINT, tmp_path / "it"))
    (folder / "processor_config.json").write_bytes("{}".encode("utf-16"))
    with pytest.raises(OSError, match=r"the processor of .*it cannot be loaded: UnicodeDecodeError.*UTF-8\?"):
        LladaVProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("image_grid_pinpoints", [[float("inf"), 384]], r"image_grid_pinpoints=\[\[inf, 384\]\]; give"),
        ("image_grid_pinpoints", "[" * 100_000, "image_grid_pinpoints=.*; give"),
        ("image_grid_pinpoints", "(1x1),...,(99999999x99999999)", "more than 64 tiles across or down is refused"),
        ("rope_theta", 10**400, "rope_theta=1000.*; it must be a finite number above 0"),
        ("rope_theta", "a", "rope_theta='a'; it must be"),
        ("rope_theta", float("nan"), "rope_theta=nan; it must be"),
    ],
)
def test_an_official_configuration_that_would_never_end_is_refused(name, value, words):
    official = json.loads((parity.OFFICIAL / "config.json").read_text())
    problems = config_problems({**official, name: value})
    assert len(problems) == 1
    assert re.search(words, problems[0])


def test_an_official_index_nested_without_end_is_refused(tmp_path):
    (tmp_path / INDEX).write_text('{"weight_map": ' + "[" * 100_000)
    with pytest.raises(ValueError, match="is no JSON"):
        stored_shapes(tmp_path)


# Checkpoint folders


@pytest.mark.parametrize("name", ["pytorch_model.BIN", "model.Pt", "x.pkl", "..ckpt"])
def test_pickles_are_told_by_any_spelling_of_their_ending(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps({}))
    problems = []
    scan_folder(tmp_path, problems)
    assert problems[0].startswith(f"{name} is a pickle")


def test_pickles_are_told_by_their_content_under_the_name_of_safetensors(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(pickle.dumps({}))
    problems = []
    assert scan_folder(tmp_path, problems) == []
    assert problems == [
        f"model-0000{n}-of-00002.safetensors is a pickle or an archive of one, whatever its name says; it is refused"
        for n in (1, 2)
    ]


@pytest.fixture
def checkpoint(tmp_path):
    return Path(shutil.copytree(BUNDLED_CHECKPOINT, tmp_path / "checkpoint"))


def change_config(folder, part, **fields):
    content = json.loads((folder / "config.json").read_text())
    content[part].update(fields)
    (folder / "config.json").write_text(json.dumps(content))


def test_a_configuration_of_endless_layers_is_not_laid_out(checkpoint):
    change_config(checkpoint, "text_config", num_hidden_layers=10**9)
    errors = [finding.text for finding in verify(checkpoint).errors]
    assert any(
        text.startswith("config.json describes 10000000") and "but there are 113 tensors" in text for text in errors
    )


def test_an_activation_nobody_knows_is_an_error_of_the_folder(checkpoint):
    change_config(checkpoint, "text_config", hidden_act="__import__")
    errors = [finding.text for finding in verify(checkpoint).errors]
    assert any("config.json describes no model that can be built: KeyError" in text for text in errors)


def test_a_key_twice_in_config_json_is_an_error_of_the_folder(checkpoint):
    text = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(text.rstrip().removesuffix("}") + ', "model_type": "lladav"}')
    assert "the key 'model_type' stands twice" in verify(checkpoint).errors[0].text


def test_the_line_in_which_code_was_changed_is_named(converted_folder, tmp_path):
    folder = Path(shutil.copytree(converted_folder, tmp_path / "changed"))
    lines = (folder / "tiling_lladav.py").read_text().splitlines(keepends=True)
    (folder / "tiling_lladav.py").write_text("".join([*lines[:11], "import os\n", *lines[11:]]))
    with (folder / "modeling_lladav.py").open("a") as file:
        file.write("import os\n")
    count = len((converted_folder / "modeling_lladav.py").read_text().splitlines())
    (folder / "features_lladav.py").unlink()
    (folder / "features_lladav.py").mkdir()
    (error,) = [finding.text for finding in verify(folder).errors if finding.topic == "code"]
    assert error.startswith("features_lladav.py, modeling_lladav.py, tiling_lladav.py: not the package's")
    assert f"(first differences: features_lladav.py:0, modeling_lladav.py:{count + 1}, tiling_lladav.py:12)" in error


def test_code_beside_official_weights_is_told(tmp_path):
    official = Path(shutil.copytree(parity.OFFICIAL, tmp_path / "official"))
    (official / "modeling_llada.py").write_text("raise SystemExit('executed')")
    siglip = json.loads((parity.FOLDER / "checkpoint-siglip" / "config.json").read_text())
    (warning,) = [finding.text for finding in verify(official, siglip).warnings if finding.topic == "code"]
    assert warning == "modeling_llada.py: code beside official weights, which this package neither needs nor runs"


# Adapters


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(save({"a.lora_A.weight": torch.zeros(1)}))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"peft_type": []}', "adapter_config.json describes no adapter that PEFT knows: TypeError"),
        ('{"peft_type": "EVIL"}', "adapter_config.json describes no adapter that PEFT knows: "),
        (
            '{"peft_type": "LORA", "r": [2], "target_modules": ["q_proj"]}',
            "PEFT cannot put it beside the base: TypeError",
        ),
        ('{"peft_type": "LORA", "bias": [[]], "target_modules": ["q_proj"]}', "PEFT cannot put it beside the base"),
    ],
)
def test_a_configuration_that_peft_stumbles_over_is_an_adapter_that_does_not_fit(adapter, config, words):
    (adapter / "adapter_config.json").write_text(config)
    with pytest.raises(AdapterError, match=words):
        check_fit(adapter, tiny_config())


def test_an_adapter_configuration_with_a_key_twice_is_refused(adapter):
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "r": 4}')
    with pytest.raises(ValueError, match="the key 'r' stands twice"):
        check_fit(adapter, tiny_config())


@pytest.mark.parametrize("name", ["sizes", "fingerprints"])
def test_what_an_adapter_says_of_its_base_must_be_objects(adapter, name):
    (adapter / "base_model.json").write_text(json.dumps({name: [1]}))
    with pytest.raises(ValueError, match=rf"base_model.json has {name}=\[1\], which is no object"):
        read_base(adapter)
