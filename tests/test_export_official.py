"""Export to the official layout and back changes nothing, and what would be lost is refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import command_line
import export_official
import parity
import python_process
from export_official import describe, export, make_plan
from hub_server import HubServer
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVConfig, LladaVForMaskedDiffusion, LladaVProcessor
from transformers_lladav.chat_text_lladav import prepare_tokenizer
from transformers_lladav.checkpoint_keys_lladav import native_key
from transformers_lladav.official_config_lladav import translate_config
from transformers_lladav.official_export import (
    CHAT_TEMPLATE,
    VISION_TOWER,
    export_problems,
    known_tower,
    official_config,
    official_tokenizer,
    official_tokenizer_config,
)
from transformers_lladav.publishing import build_processor, save_checkpoint
from transformers_lladav.weights import CheckpointError

SIGLIP = parity.FOLDER / "checkpoint-siglip"
TOWER = "model/siglip2-so400m-patch14-384"  # what the fixture names; it is not here
TEXTS = [
    "Hello world, 123 apples!\n\nNew line",
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhat is  this? äöü 漢字<|eot_id|>",
    "[CLS] <|mdm_mask|><role> a",
]
# Of a training run, or of the file; `bos_token_id` lies outside the vocabulary in the release.
NOT_KEPT = ("bos_token_id", "mm_projector_lr", "mm_vision_tower_lr", "transformers_version")


def tensors_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def content(path):
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.fixture(scope="module")
def exported(converted_folder, tmp_path_factory):
    """Official, converted, and exported again; do not change it."""
    return export(converted_folder, tmp_path_factory.mktemp("exported") / "official", TOWER)


@pytest.fixture(scope="module")
def grouped_folder(tmp_path_factory):
    """A native folder of a seeded model with two key-value heads for four heads and a tower like the fixture's."""
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    vision = {**content(SIGLIP / "config.json")["vision_config"], "num_hidden_layers": 3, "vision_use_head": False}
    config = LladaVConfig(
        text_config=text,
        vision_config=vision,
        max_tiles=9,
        newline_position="one_token",
        image_grid_pinpoints=[[384, 768], [768, 384], [384, 384]],
    )
    processor = build_processor(config, AutoTokenizer.from_pretrained(parity.OFFICIAL))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("grouped") / "native"
    save_checkpoint(LladaVForMaskedDiffusion(config), processor, folder)
    return folder


@pytest.fixture
def native(converted_folder, tmp_path):
    """A copy of the native folder to break."""
    return Path(shutil.copytree(converted_folder, tmp_path / "native"))


def change_config(folder, part=None, **fields):
    config = content(folder / "config.json")
    (config[part] if part else config).update(fields)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def refusal(tmp_path):
    """Runs an export that must fail, checks that it left nothing, returns the problems."""

    def run(source, vision_tower=TOWER):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(CheckpointError, match="cannot be exported; nothing was written") as caught:
            export(source, tmp_path / "output", vision_tower)
        assert sorted(tmp_path.iterdir()) == before
        return caught.value.problems

    return run


def test_official_tensors_come_back(exported):
    assert_same_tensors(tensors_of(exported), tensors_of(parity.OFFICIAL))


def test_the_official_configuration_comes_back(exported):
    ours, theirs = content(exported / "config.json"), content(parity.OFFICIAL / "config.json")
    assert ours.pop("bos_token_id") == 126080
    assert ours == {name: value for name, value in theirs.items() if name not in NOT_KEPT}
    generation = content(exported / "generation_config.json")
    assert generation == {"bos_token_id": 126080, "eos_token_id": theirs["eos_token_id"], "pad_token_id": 126081}


def test_the_official_tokenizer_comes_back(exported):
    assert content(exported / "tokenizer.json") == content(parity.OFFICIAL / "tokenizer.json")
    name = "special_tokens_map.json"
    assert content(exported / name) == content(parity.OFFICIAL / name)
    ours, theirs = (content(folder / "tokenizer_config.json") for folder in (exported, parity.OFFICIAL))
    assert ours.pop("chat_template") != theirs.pop("chat_template")  # but they say the same, see below
    # Of a tokenizer of files that are not there.
    assert ours == {
        name: value
        for name, value in theirs.items()
        if name not in ("fast_tokenizer", "merges_file", "vocab_file", "trust_remote_code")
    }
    assert ours["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert [int(number) for number in ours["added_tokens_decoder"]] == list(range(126080, 126349))


def test_the_official_loader_would_keep_the_vocabulary(exported):
    assert len(PreTrainedTokenizerFast.from_pretrained(exported)) == 126349


@pytest.mark.parametrize("generation_prompt", [True, False])
def test_the_chat_template_writes_the_official_text(exported, official_tokenizer, generation_prompt):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(exported)
    chat = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "<image>\nHi\n"},
        {"role": "assistant", "content": "It's a {{cat}}"},
    ]
    for messages in (chat, chat[1:], chat[1:2]):
        texts = [
            one.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
            for one in (tokenizer, official_tokenizer)
        ]
        assert texts[0] == texts[1]
    assert tokenizer.chat_template == CHAT_TEMPLATE


def round_trip(converter, folder, tmp_path):
    official = export(folder, tmp_path / "official", str(SIGLIP))
    return official, converter.convert(official, tmp_path / "again", SIGLIP / "config.json")


def assert_same_folder(ours, theirs):
    assert_same_tensors(tensors_of(ours), tensors_of(theirs))
    configs = [LladaVConfig.from_pretrained(folder).to_dict() for folder in (ours, theirs)]
    for config in configs:
        for part in ("text_config", "vision_config"):
            del config[part]["dtype"]  # a model that was loaded repeats it there
    assert configs[0] == configs[1]
    tokenizers = [LladaVProcessor.from_pretrained(folder).tokenizer for folder in (ours, theirs)]
    for text in TEXTS:
        assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]


def logits(folder, **kwargs):
    model, info = LladaVForMaskedDiffusion.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **kwargs
    )
    assert not any(info.values()), info
    torch.manual_seed(1)
    pixels = torch.randn(1, 3, 384, 384)
    ids = torch.tensor([[126080, *[126349] * 730, 5, 6, 126336]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels, image_sizes=torch.tensor([[384, 384]])).logits


def test_native_comes_back(converter, grouped_folder, tmp_path):
    official, again = round_trip(converter, grouped_folder, tmp_path)
    assert_same_folder(again, grouped_folder)
    config = content(official / "config.json")
    assert config["image_grid_pinpoints"] == [[768, 384], [384, 768], [384, 384]]
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert (config["rope_theta"], config["image_aspect_ratio"]) == (10000.0, "anyres_max_9")
    assert (config["mm_newline_position"], config["tokenizer_model_max_length"]) == ("one_token", 4096)
    assert config["torch_dtype"] == "float32"
    assert config["mm_vision_tower"] == str(SIGLIP)
    native_config = LladaVConfig.from_pretrained(grouped_folder)
    expected = logits(grouped_folder)
    assert torch.equal(logits(official, config=native_config), expected)
    assert torch.equal(logits(official, vision_config=SIGLIP), expected)


def test_the_exported_model_is_the_official_one(exported, converted_folder):
    config = LladaVConfig.from_pretrained(converted_folder)
    expected = logits(converted_folder)
    assert torch.equal(logits(exported, config=config), expected)
    assert torch.equal(logits(exported, vision_config=SIGLIP), expected)
    ours, theirs = LladaVProcessor.from_pretrained(exported), LladaVProcessor.from_pretrained(converted_folder)
    for text in (*TEXTS, "<image><video>"):
        assert ours.tokenizer(text)["input_ids"] == theirs.tokenizer(text)["input_ids"]


def test_a_tuned_model_comes_back(converter, converted_folder, tmp_path):
    model = LladaVForMaskedDiffusion.from_pretrained(converted_folder, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.tensor([[126080, 5, 6, 126336, 126336]])
    labels = torch.tensor([[-100, -100, -100, 7, 8]])
    model(input_ids=ids, labels=labels, loss_weights=torch.ones(1, 5)).loss.backward()
    optimizer.step()
    tuned = tmp_path / "tuned"
    save_checkpoint(model, LladaVProcessor.from_pretrained(converted_folder), tuned)
    before, after = tensors_of(converted_folder), tensors_of(tuned)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    _, again = round_trip(converter, tuned, tmp_path)
    assert_same_folder(again, tuned)


def test_plain_and_official_names_are_both_taken(converted_folder, exported, tmp_path):
    model = LladaVForMaskedDiffusion.from_pretrained(converted_folder)
    processor = LladaVProcessor.from_pretrained(converted_folder)
    for original in (False, True):
        folder = tmp_path / f"saved{original}"
        model.save_pretrained(folder, save_original_format=original)
        processor.save_pretrained(folder)
        assert_same_tensors(tensors_of(export(folder, tmp_path / f"out{original}", TOWER)), tensors_of(exported))


def test_dtype_and_shards(exported, converted_folder, tmp_path):
    folder = export(converted_folder, tmp_path / "out", TOWER, torch.float32, max_shard_bytes=17_000_000)
    index = content(folder / "model.safetensors.index.json")
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("model-*-of-00002.safetensors")}
    assert index["weight_map"].keys() == content(parity.OFFICIAL / "model.safetensors.index.json")["weight_map"].keys()
    ours, theirs = tensors_of(folder), tensors_of(exported)
    assert all(torch.equal(ours[name], tensor.float()) for name, tensor in theirs.items())
    assert content(folder / "config.json")["torch_dtype"] == "float32"


def test_translating_back_and_forth_changes_nothing():
    so400m = known_tower(VISION_TOWER)
    for changes in (
        {},
        {"max_tiles": 9, "newline_position": "no_token"},
        {"image_grid_pinpoints": []},
        {"image_grid_pinpoints": [[384, 1152], [768, 768]]},
        {"text_config": {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_act": "gelu"}},
        {"text_config": {"attention_bias": True, "attention_dropout": 0.1, "initializer_range": 0.5}},
        {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "vocab_size": 130000}},
    ):
        config = LladaVConfig(**changes)
        assert export_problems(config, so400m) == []
        official = json.loads(json.dumps(official_config(config, "bfloat16")))
        assert LladaVConfig(**translate_config(official)).to_dict() == config.to_dict(), changes


@pytest.mark.parametrize(
    ("part", "field", "value", "said"),
    [
        (None, "mask_token_id", 126337, "mask_token_id=126337; the official code has 126336"),
        (None, "suppressed_token_ids", [126081], "suppressed_token_ids=[126081]; the official code has [126080,"),
        (None, "projector_hidden_act", "silu", "projector_hidden_act='silu'; the official code has 'gelu'"),
        (None, "single_tile_newline", False, "single_tile_newline=False; the official code has True"),
        (None, "tie_word_embeddings", True, "tie_word_embeddings=True; the official code has False"),
        (None, "quantization_config", {"load_in_4bit": True}, "quantization_config; call model.dequantize()"),
        ("text_config", "eos_token_id", 126081, "text_config.eos_token_id=126081; the official code has 126348"),
        ("text_config", "pad_token_id", 0, "text_config.pad_token_id=0; the official code has 126081"),
        ("text_config", "bos_token_id", None, "text_config.bos_token_id=None; the official code has 126080"),
        ("text_config", "tie_word_embeddings", True, "tie_word_embeddings=True; the official code has False"),
        ("text_config", "mlp_bias", True, "text_config.mlp_bias=True; the official code has False"),
        ("text_config", "head_dim", 16, "text_config.head_dim=16; the official code has 8"),
        (
            "text_config",
            "rope_parameters",
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
            "text_config.rope_parameters={'rope_type': 'linear', 'factor': 2.0}; the official code has",
        ),
        ("vision_config", "vision_use_head", True, "the official tower has no pooling head"),
    ],
)
def test_what_the_official_configuration_cannot_say(native, refusal, part, field, value, said):
    change_config(native, part, **{field: value})
    assert any(said in problem for problem in refusal(native)), field


def test_no_projector_bias(native, refusal):
    change_config(native, multimodal_projector_bias=False)
    problems = refusal(native)
    assert any("multimodal_projector_bias=False; the official code has True" in problem for problem in problems)
    assert sum("unexpected tensor: model.multi_modal_projector.linear_" in problem for problem in problems) == 2


def test_a_model_of_other_token_ids_and_sizes(refusal):
    problems = refusal(BUNDLED_CHECKPOINT, VISION_TOWER)
    named = ["mask_token_id=562", "suppressed_token_ids=", "bos_token_id=559", "eos_token_id=560", "pad_token_id=561"]
    named += ["vision_config with hidden_size=128, intermediate_size=384", "processor_config.json has tiling=square"]
    assert len(problems) == len(named)
    for part in named:
        assert any(part in problem for problem in problems), part


def test_the_named_tower_must_have_the_sizes(native, refusal):
    (problem,) = refusal(native, VISION_TOWER)
    assert "hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=3" in problem
    assert "hidden_size=1152, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=26" in problem
    assert "give --vision-tower" in problem


def test_a_folder_as_tower_is_compared(native, tmp_path, refusal):
    tower = tmp_path / "tower"
    tower.mkdir()
    config = content(SIGLIP / "config.json")
    config["vision_config"]["num_hidden_layers"] = 3
    (tower / "config.json").write_text(json.dumps(config))
    (problem,) = refusal(native, str(tower))
    assert "vision_config with num_hidden_layers=3, but the vision tower has num_hidden_layers=2" in problem
    (tower / "config.json").write_text("{}")
    (problem,) = refusal(native, str(tower))
    assert problem.startswith(f"--vision-tower {tower}: config.json has model_type=None")
    config["vision_config"]["hidden_size"] = "wide"
    (tower / "config.json").write_text(json.dumps(config))
    problems = refusal(native, str(tower))
    assert all(problem.startswith(f"--vision-tower {tower}: ") for problem in problems)
    assert "Field 'hidden_size' expected int, got str (value: 'wide')" in problems[-1]


def test_image_settings_that_the_official_code_does_not_have(native, refusal):
    path = native / "processor_config.json"
    processor = content(path)
    processor["image_processor"] |= {"tiling": "tiles", "max_tiles": 9, "image_mean": [0.4, 0.5, 0.5]}
    path.write_text(json.dumps(processor))
    assert refusal(native) == [
        "processor_config.json has image_mean=[0.4, 0.5, 0.5]; the official code would have [0.5, 0.5, 0.5]",
        "processor_config.json has tiling=tiles; the official code would have auto",
        "processor_config.json has max_tiles=9; the official code would have 4",
    ]


def test_more_tokens_than_the_official_vocabulary(native, refusal):
    processor = LladaVProcessor.from_pretrained(native)
    processor.tokenizer.add_tokens(["<tool>", "<call>"])
    processor.save_pretrained(native)
    (problem,) = refusal(native)
    assert "the tokenizer has 2 tokens beyond output_vocab_size=126349 (<call>, <tool>)" in problem


def test_fewer_tokens_than_answers_consist_of(native, refusal):
    tokenizer = content(native / "tokenizer.json")
    tokenizer["added_tokens"] = [entry for entry in tokenizer["added_tokens"] if entry["id"] not in (126100, 126200)]
    (native / "tokenizer.json").write_text(json.dumps(tokenizer))
    (problem,) = refusal(native)
    assert (
        "the tokenizer has no token for 2 of the ids below output_vocab_size=126349 (the first is 126100)" in problem
    )


def test_an_adapter_is_to_be_merged_first(native, refusal):
    (native / "adapter_config.json").write_text("{}")
    (problem,) = refusal(native)
    assert "it is an adapter" in problem
    assert problem.endswith(f"merge it into its base model first: lladav merge {native} OUTPUT")


def test_an_adapter_among_the_weights_is_to_be_merged_first(native, refusal):
    tensors = load_file(native / "model.safetensors")
    name = "model.language_model.layers.0.self_attn.q_proj."
    tensors[f"{name}base_layer.weight"] = tensors.pop(f"{name}weight")
    tensors[f"{name}lora_A.default.weight"] = torch.zeros(2, 32)
    save_file(tensors, native / "model.safetensors", metadata={"format": "pt"})
    (problem,) = refusal(native)
    assert "the weights hold an adapter that was not merged" in problem
    assert "merge_and_unload()" in problem


def test_problems_of_different_kinds_come_together(native, refusal):
    change_config(native, projector_hidden_act="silu")
    (native / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    (native / "tokenizer_config.json").unlink()
    tensors = load_file(native / "model.safetensors")
    del tensors["model.image_newline"]
    tensors["lm_head.bias"] = torch.zeros(126464)
    save_file(tensors, native / "model.safetensors", metadata={"format": "pt"})
    problems = refusal(native)
    assert len(problems) == 4  # a folder with a refused file is not complete: what is missing is no news
    for part in ("projector_hidden_act='silu'", "is a pickle", "tokenizer_config.json is missing", "lm_head.bias"):
        assert any(part in problem for problem in problems), part
    (native / "pytorch_model.bin").unlink()
    assert "missing tensor: model.image_newline [32]" in refusal(native)


def test_only_native_folders(refusal, tmp_path, native):
    assert refusal(parity.OFFICIAL) == ["it is in the official layout already"]
    change_config(native, model_type="llava")
    assert refusal(native) == ["config.json has model_type='llava'; a native LLaDA-V folder has 'lladav'"]
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub id"):
        export(tmp_path / "nothing here", tmp_path / "out")


def test_nan_is_refused_while_it_is_copied(native, refusal):
    tensors = load_file(native / "model.safetensors")
    tensors["model.image_newline"][3] = torch.inf
    save_file(tensors, native / "model.safetensors", metadata={"format": "pt"})
    assert refusal(native) == ["model.image_newline in model.safetensors holds 1 NaN or infinite values"]


def test_a_crash_while_writing_leaves_nothing(converted_folder, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(export_official, "official_config", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(converted_folder, tmp_path / "out", TOWER)
    assert list(tmp_path.iterdir()) == []


def small_tokenizer(normalizer, pre_tokenizer):
    vocab = {letter: number for number, letter in enumerate("abcdefgh")} | {"ab": 8}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    "normalizer",
    [None, normalizers.Lowercase(), normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])],
    ids=["none", "one", "several"],
)
@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Punctuation()]),
    ],
    ids=["none", "one", "several"],
)
def test_what_the_processor_put_into_a_tokenizer_is_taken_out(normalizer, pre_tokenizer):
    tokenizer = small_tokenizer(normalizer, pre_tokenizer)
    before = json.loads(tokenizer.backend_tokenizer.to_str())
    prepare_tokenizer(tokenizer, ("<image>", "<video>"))
    native = json.loads(tokenizer.backend_tokenizer.to_str())
    assert native["normalizer"] != before["normalizer"]
    config = LladaVConfig(image_token_id=9, video_token_id=10, output_vocab_size=9)
    problems = []
    official = official_tokenizer(native, config, problems)
    assert problems == []
    assert official["normalizer"] == before["normalizer"]
    assert official["pre_tokenizer"] == before["pre_tokenizer"]
    assert official["added_tokens"] == before["added_tokens"] == []
    assert official["model"]["merges"] == ["a b"]
    assert Tokenizer.from_str(json.dumps(official)).encode("abc").ids == [8, 2]


def test_placeholders_that_are_tokens_of_the_model_stay():
    tokenizer = small_tokenizer(None, None)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    native = json.loads(tokenizer.backend_tokenizer.to_str())
    config = LladaVConfig(image_token_id=9, video_token_id=10, output_vocab_size=10)
    problems = []
    official = official_tokenizer(native, config, problems)
    assert [entry["content"] for entry in official["added_tokens"]] == ["<image>"]
    assert problems == []


def test_cutting_and_padding_are_not_exported_and_added_tokens_are():
    tokenizer = small_tokenizer(None, None)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(4)
    backend.enable_padding()
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    native = json.loads(backend.to_str())
    official = official_tokenizer(native, LladaVConfig(output_vocab_size=9), [])
    assert (official["truncation"], official["padding"], official["post_processor"]) == (None, None, None)
    backend.post_processor = processors.TemplateProcessing(single="a $A", special_tokens=[("a", 0)])
    native = json.loads(backend.to_str())
    official = official_tokenizer(native, LladaVConfig(output_vocab_size=9), [])
    assert Tokenizer.from_str(json.dumps(official)).encode("cdefgh").ids == [0, 2, 3, 4, 5, 6, 7]


def test_merges_of_tokens_with_spaces_stay_pairs():
    native = json.loads(small_tokenizer(None, None).backend_tokenizer.to_str())
    native["model"]["vocab"] |= {"a ": 9, "a b": 10}
    native["model"]["merges"] = [["a", "b"], ["a ", "b"]]
    official = official_tokenizer(native, LladaVConfig(output_vocab_size=11), [])
    assert official["model"]["merges"] == [["a", "b"], ["a ", "b"]]


def test_special_tokens_in_every_spelling():
    native = json.loads(small_tokenizer(None, None).backend_tokenizer.to_str())
    entry = {"id": 9, "special": True, "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    native["added_tokens"] = [{**entry, "content": "<e>"}]
    official = official_tokenizer(native, LladaVConfig(output_vocab_size=10), [])
    given = {
        "eos_token": {"content": "<e>", "lstrip": True},
        "bos_token": "a",
        "image_token": "<image>",
        "extra_special_tokens": {"boi_token": "b", "video_token": "<video>"},
    }
    config, special = official_tokenizer_config(given, official)
    assert {
        name: value for name, value in config.items() if name.endswith("_token") and not name.startswith("add")
    } == {
        "eos_token": "<e>",
        "bos_token": "a",
        "boi_token": "b",
    }
    assert special["eos_token"] == {
        "content": "<e>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False
    }  # fmt: skip
    assert "bos_token" not in special  # an ordinary token of the vocabulary
    assert config["additional_special_tokens"] == special["additional_special_tokens"] == []


def test_the_command_line(converted_folder, exported, tmp_path, capsys):
    arguments = ["--source", str(converted_folder), "--vision-tower", TOWER]
    assert export_official.main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert f"vision tower: {TOWER}\n" in shown
    for name, tensor in tensors_of(exported).items():
        assert f"  {native_key(name)} -> {name}  {list(tensor.shape)} bfloat16\n" in shown
    assert export_official.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    for path in exported.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert command_line.run(export_official.main, [*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_template_of_ones_own_is_lost_and_said_to_be(native, tmp_path, capsys):
    template = native / "chat_template.jinja"
    export(native, tmp_path / "usual", TOWER)
    assert capsys.readouterr().err == ""
    own = template.read_text().replace("helpful", "harmless")
    template.write_bytes(own.encode("utf-16"))  # in whatever encoding
    assert "note: the chat template is not the usual one" in "\n".join(describe(make_plan(native, TOWER), None, 10**9))
    template.write_text(own)
    export(native, tmp_path / "own", TOWER)
    assert "note: the chat template is not the usual one and is not exported" in capsys.readouterr().err
    for path in (tmp_path / "usual").iterdir():
        assert (tmp_path / "own" / path.name).read_bytes() == path.read_bytes()


FROM_THE_HUB = """
import json, sys
from pathlib import Path
from huggingface_hub.constants import HF_HUB_CACHE
import {script} as script

arguments = json.loads(sys.argv[1])
assert script.main([*arguments, "--dry-run"]) == 0
assert not list(Path(HF_HUB_CACHE).rglob("*.safetensors"))
assert script.main([*arguments, "--output", sys.argv[2]]) == 0
"""


def test_a_model_from_the_hub(exported, converted_folder, tmp_path):
    """A dry run downloads no weights; an export of a Hub id writes what an export of a folder does."""
    arguments = ["--source", "me/tuned", "--vision-tower", TOWER]
    with HubServer() as hub:
        hub.add_repo("me/tuned", converted_folder)
        environment = os.environ | hub.environment(tmp_path / "home")
        code = FROM_THE_HUB.format(script="export_official")
        scripts = Path(__file__).parent.parent / "conversion"
        command = ["-c", code, json.dumps(arguments), str(tmp_path / "out")]
        environment["PYTHONPATH"] = os.pathsep.join([str(scripts), *sys.path])  # the package that is tested here
        run = python_process.run(command, env=environment)
        assert run.returncode == 0, run.stderr
    for path in exported.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_help():
    script = Path(__file__).parent.parent / "conversion" / "export_official.py"
    shown = python_process.run([script, "--help"]).stdout
    for option in ("--source", "--output", "--vision-tower", "--dtype", "--max-shard-size", "--dry-run"):
        assert option in shown
