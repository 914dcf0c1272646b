"""The converter changes no value, gets the ids right, and refuses before anything is written."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import command_line
import parity
import python_process
from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion, LladaVGenerationConfig, LladaVProcessor
from transformers_lladav.checkpoint_keys_lladav import native_key
from transformers_lladav.weights import CheckpointError, stored_origin

SIGLIP = parity.FOLDER / "checkpoint-siglip" / "config.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def tensors_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def source(tmp_path):
    """A copy of the official folder to break."""
    return Path(shutil.copytree(parity.OFFICIAL, tmp_path / "official"))


def change_config(source, **fields):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(source, change, file=SECOND):
    tensors = load_file(source / file)
    change(tensors)
    save_file(tensors, source / file, metadata={"format": "pt"})


@pytest.fixture
def refusal(source, tmp_path, converter):
    """Runs a conversion that must fail, checks that it left nothing, returns the message."""

    def run(vision_config=SIGLIP):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(CheckpointError) as caught:
            converter.convert(source, tmp_path / "made" / "output", vision_config)
        assert sorted(tmp_path.iterdir()) == before
        return str(caught.value)

    return run


def test_every_tensor_keeps_its_bytes(converted_folder):
    official, native = tensors_of(parity.OFFICIAL), tensors_of(converted_folder)
    assert {native_key(name) for name in official} == set(native)
    for name, tensor in official.items():
        assert native[native_key(name)].dtype == tensor.dtype
        assert sha256(native[native_key(name)]) == sha256(tensor), name


def test_config(converted_folder):
    stored = json.loads((converted_folder / "config.json").read_text())
    assert stored["model_type"] == "lladav"
    assert stored["architectures"] == ["LladaVForMaskedDiffusion"]
    assert stored["dtype"] == "bfloat16"
    config = LladaVConfig.from_pretrained(converted_folder)
    assert (config.image_token_id, config.video_token_id, config.mask_token_id) == (126349, 126350, 126336)
    assert config.output_vocab_size == 126349
    assert sorted(config.suppressed_token_ids) == [126080, 126081, 126346, 126347]
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (126080, 126348)
    assert config.text_config.rope_parameters["rope_theta"] == 500000.0
    assert (config.vision_config.num_hidden_layers, config.vision_config.num_attention_heads) == (3, 4)


def test_generation_config(converted_folder):
    settings = LladaVGenerationConfig.from_pretrained(converted_folder)
    assert settings.schedule() == (128, 128, 128)
    settings.change({"max_new_tokens": 8})
    assert settings.schedule() == (8, 8, 8)
    assert (settings.eos_token_id, settings.pad_token_id, settings.bos_token_id) == (126348, 126081, 126080)
    assert settings.mask_token_id == 126336
    loaded = LladaVForMaskedDiffusion.from_pretrained(converted_folder).generation_config
    assert (loaded.max_new_tokens, loaded.eos_token_id) == (128, 126348)


def test_processor(converted_folder, processor):
    loaded = LladaVProcessor.from_pretrained(converted_folder)
    assert loaded.tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [126349, 126350]
    assert len(loaded.tokenizer) == 126351
    assert loaded.chat_template == loaded.tokenizer.chat_template == processor.chat_template
    prompt = parity.by_id("prompts", "prompts")["image_no_newline"]
    ours, theirs = parity.model_inputs(loaded, prompt), parity.model_inputs(processor, prompt)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_model_is_the_official_one(converted_folder, model):
    loaded, info = LladaVForMaskedDiffusion.from_pretrained(
        converted_folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    ids = torch.tensor([[126080, 5, 6, 7, 126336, 126336]])
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_shards_and_dtype(converter, converted_folder, tmp_path):
    folder = converter.convert(parity.OFFICIAL, tmp_path / "out", SIGLIP, torch.float32, max_shard_bytes=17_000_000)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [FIRST, SECOND]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in files:
        with safe_open(folder / file, framework="pt") as handle:
            assert {name for name, place in index["weight_map"].items() if place == file} == set(handle.keys())
    converted, exact = tensors_of(folder), tensors_of(converted_folder)
    assert all(torch.equal(converted[name], tensor.float()) for name, tensor in exact.items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in converted.values())
    assert LladaVForMaskedDiffusion.from_pretrained(folder).dtype == torch.float32


def test_the_command_line(converter, tmp_path, capsys):
    arguments = ["--source", str(parity.OFFICIAL), "--output", str(tmp_path / "out"), "--vision-config", str(SIGLIP)]
    assert converter.main([*arguments, "--dtype", "float16"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert command_line.run(converter.main, arguments) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_help():
    script = Path(__file__).parent.parent / "conversion" / "convert_checkpoint.py"
    shown = python_process.run([script, "--help"]).stdout
    for option in ("--source", "--output", "--vision-config", "--dtype"):
        assert option in shown


def test_existing_output_is_left_alone(converter, tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        converter.convert(parity.OFFICIAL, tmp_path, SIGLIP)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_crash_while_writing_leaves_nothing(converter, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(converter, "write_all_but_weights", full_disk)
    with pytest.raises(OSError, match="No space left"):
        converter.convert(parity.OFFICIAL, tmp_path / "out", SIGLIP)
    assert list(tmp_path.iterdir()) == []


def test_all_wrong_tensors_are_in_one_message(source, refusal):
    def change(tensors):
        del tensors["model.mm_projector.2.bias"]
        tensors["model.mm_projector.4.weight"] = torch.zeros(2, 3)
        tensors["model.mm_projector.0.bias"] = torch.zeros(33)

    change_tensors(source, change)
    message = refusal()
    assert "missing tensor: model.multi_modal_projector.linear_2.bias [32]" in message
    assert f"unexpected tensor: model.mm_projector.4.weight in {SECOND}, shape [2, 3]" in message
    assert f"wrong shape: model.mm_projector.0.bias in {SECOND} is [33], config.json needs [32]" in message
    assert message.count("\n- ") == 3


def test_a_shard_that_holds_fewer_layers_than_the_config(source, refusal):
    change_config(source, num_hidden_layers=4)
    message = refusal()
    assert message.count("missing tensor: model.language_model.layers.3.") == message.count("\n- ") == 9


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused(source, refusal, name):
    (source / name).write_bytes(b"\x80\x04N.")
    assert f"{name} is a pickle, which can run any code when it is opened" in refusal()


def test_training_leftovers_are_passed_over(source, converter, tmp_path):
    (source / "training_args.bin").write_bytes(b"\x80\x04N.")
    folder = converter.convert(source, tmp_path / "out", SIGLIP)
    assert not (folder / "training_args.bin").exists()


def test_a_truncated_shard(source, refusal):
    with (source / FIRST).open("r+b") as file:
        file.truncate(5_000_000)
    assert f"{FIRST} is truncated or damaged" in refusal()


def test_a_missing_shard(source, refusal):
    (source / SECOND).unlink()
    assert f"{SECOND} is missing" in refusal()


def test_problems_of_different_kinds_come_together(source, refusal):
    change_config(source, mm_projector_type="linear")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    (source / SECOND).write_bytes(b"")
    (source / "tokenizer.json").unlink()
    message = refusal()
    for part in ("mm_projector_type='linear'", "is a pickle", f"{SECOND} is truncated", "tokenizer.json is missing"):
        assert part in message


def test_an_unknown_model_type(source, refusal):
    change_config(source, model_type="llava_llama")
    assert "model_type='llava_llama'; an official LLaDA-V checkpoint has 'llava_llada'" in refusal()


def test_a_config_that_is_not_json(source, refusal):
    (source / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal()


def test_integer_tensors(source, refusal):
    change_tensors(
        source, lambda tensors: tensors.update({"model.image_newline": torch.zeros(32, dtype=torch.int8)}), FIRST
    )
    assert f"model.image_newline in {FIRST} is I8; supported: BF16, F16, F32" in refusal()


def test_another_tokenizer(source, refusal):
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace("<|mdm_mask|>", "<|was_mask|>"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    assert "the tokenizer has <|mdm_mask|> as None, not as 126336" in refusal()


def test_unknown_heads(refusal):
    wanted = "give its SigLIP configuration (vision_config= of from_pretrained, --vision-config of a script)"
    assert wanted in refusal(vision_config=None)


def test_sizes_that_do_not_fit_each_other(source, refusal):
    change_config(source, num_attention_heads=5)
    assert "hidden_size=32 is not a multiple of num_attention_heads=5" in refusal()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("hidden_act", "swoosh", "KeyError: 'swoosh'"), ("hidden_size", 10**18, "RuntimeError: Storage size calc")],
)
def test_a_model_that_nobody_can_build(source, refusal, field, value, reason):
    change_config(source, **{field: value})
    assert f"config.json describes no model that can be built: {reason}" in refusal()


def test_the_origin_of_a_local_folder_is_recorded(converter, tmp_path):
    arguments = ["--source", str(parity.OFFICIAL), "--vision-config", str(SIGLIP)]
    output = tmp_path / "out"
    assert converter.main([*arguments, "--output", str(output), "--origin", "GSAI-ML/LLaDA-V"]) == 0
    assert stored_origin(output) == "GSAI-ML/LLaDA-V"
    loaded, info = LladaVForMaskedDiffusion.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    loaded.save_pretrained(tmp_path / "again")
    assert stored_origin(tmp_path / "again") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--origin", "LLaDA-V"], "--origin LLaDA-V is no Hub id such as GSAI-ML/LLaDA-V"),
        (["--private"], "--private needs --push-to REPO"),
        ([], "--output is required, unless it is a --dry-run"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_options_that_do_not_fit(converter, tmp_path, capsys, options, message):
    output = ["--output", str(tmp_path / "out")] if options else []
    with pytest.raises(SystemExit, match="2"):
        converter.main(["--source", str(parity.OFFICIAL), *output, *options])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["0.0", "-1.0", "nan", "inf"])
def test_a_shard_size_that_is_none(converter, tmp_path, capsys, size):
    arguments = ["--source", str(parity.OFFICIAL), "--output", str(tmp_path / "out"), f"--max-shard-size={size}"]
    assert command_line.run(converter.main, arguments) == 1
    assert f"--max-shard-size {size} must be a finite size in GB above 0" in capsys.readouterr().err
