"""A fresh model has every kept byte of LLaDA and SigLIP, a seed decides what is new, and misfits are refused."""

import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, SiglipVisionModel

import build_from_parts
import command_line
import parity
import python_process
from build_from_parts import NEWLINE, PROJECTOR, Parts, build, draw_new_tensors, make_plan
from hub_server import HubServer
from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion, LladaVProcessor
from transformers_lladav.checkpoint_keys_lladav import official_key
from transformers_lladav.weights import CheckpointError

LLADA, SIGLIP = parity.FOLDER / "checkpoint-llada", parity.FOLDER / "checkpoint-siglip"
SEED = 7
# Bytes of the new tensors for the seed, whatever the machine.
NEW_DIGESTS = {
    "model.image_newline": "e1ec6cb7438bc745",
    "model.multi_modal_projector.linear_1.weight": "600bf306092cae4e",
    "model.multi_modal_projector.linear_1.bias": "a20ff50745a757ea",
    "model.multi_modal_projector.linear_2.weight": "ec9a160102e0aa49",
    "model.multi_modal_projector.linear_2.bias": "5287561d8859ab62",
}


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def tensors_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def parts(language=LLADA, vision=SIGLIP, tokenizer=parity.OFFICIAL):
    return Parts(str(language), str(vision), None if tokenizer is None else str(tokenizer))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A fresh model from the fixtures; do not change it."""
    return build(parts(), tmp_path_factory.mktemp("built") / "lladav", SEED)


@pytest.fixture
def language(tmp_path):
    """A copy of LLaDA to break."""
    return Path(shutil.copytree(LLADA, tmp_path / "llada"))


@pytest.fixture
def vision(tmp_path):
    """A copy of SigLIP to break."""
    return Path(shutil.copytree(SIGLIP, tmp_path / "siglip"))


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def refusal(tmp_path):
    """Runs a build that must fail, checks that it left nothing, returns the message."""

    def run(**changed):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(CheckpointError, match="cannot be put together; nothing was written") as caught:
            build(parts(**changed), tmp_path / "output", SEED)
        assert sorted(tmp_path.iterdir()) == before
        return str(caught.value)

    return run


@pytest.mark.parametrize("part", ["language", "vision"])
def test_every_kept_tensor_has_its_bytes(built, part):
    tensors = {official_key(name): tensor for name, tensor in tensors_of(built).items()}
    entries = parity.numbers("conversion")[part]
    assert len(entries) == {"language": 30, "vision": 53}[part]
    for entry in entries:
        tensor = tensors[entry["target"]]
        assert list(tensor.shape) == entry["shape"], entry["target"]
        assert str(tensor.dtype) == f"torch.{entry['dtype']}", entry["target"]
        assert sha256(tensor) == entry["sha256"], entry["target"]


def test_keys_go_where_the_official_ones_went():
    plan = make_plan(parts(), SEED).plan
    sources = {tensor.key: official_key(name) for name, tensor in plan.tensors.items() if hasattr(tensor, "key")}
    conversion = parity.numbers("conversion")
    assert sources == {entry["source"]: entry["target"] for entry in conversion["language"] + conversion["vision"]}


def test_exactly_the_unused_tensors_are_dropped():
    assert sorted(make_plan(parts(), SEED).dropped) == sorted(parity.numbers("conversion")["vision_dropped"])


def test_new_is_only_the_projector_and_the_newline(built):
    conversion = parity.numbers("conversion")
    kept = {entry["target"] for entry in conversion["language"] + conversion["vision"]}
    tensors = tensors_of(built)
    new = {name: tensor for name, tensor in tensors.items() if official_key(name) not in kept}
    assert {name: list(tensor.shape) for name, tensor in new.items()} == {
        NEWLINE: [16],
        f"{PROJECTOR}linear_1.weight": [16, 32],
        f"{PROJECTOR}linear_1.bias": [16],
        f"{PROJECTOR}linear_2.weight": [16, 16],
        f"{PROJECTOR}linear_2.bias": [16],
    }
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    assert {name: sha256(tensor)[:16] for name, tensor in new.items()} == NEW_DIGESTS


SHAPES = {
    f"{PROJECTOR}linear_1.weight": (400, 100),
    f"{PROJECTOR}linear_1.bias": (400,),
    NEWLINE: (10_000,),
}


def test_the_projector_is_that_of_a_new_linear():
    """Uniform in +-1/10 for 100 inputs: variance (1/10)^2 / 3, and the edges are nearly reached."""
    drawn = draw_new_tensors(SHAPES, SEED)
    for name, count in ((f"{PROJECTOR}linear_1.weight", 40_000), (f"{PROJECTOR}linear_1.bias", 400)):
        value = drawn[name].value.double()
        assert value.abs().max() <= 0.1
        assert value.abs().max() > 0.1 * (1 - 20 / count)
        assert abs(float(value.mean())) < 5 * math.sqrt(0.01 / 3 / count)
        assert abs(float(value.square().mean()) * 300 - 1) < 5 * math.sqrt(0.8 / count)


def test_the_newline_is_normal():
    """Standard deviation 1/100 for 10,000 entries; shares within one and two deviations as in the tables."""
    value = draw_new_tensors(SHAPES, SEED)[NEWLINE].value.double() * 100
    assert abs(float(value.mean())) < 0.05
    assert abs(float(value.square().mean()) - 1) < 5 * math.sqrt(2 / 10_000)
    for deviations, share in ((1, 0.6827), (2, 0.9545)):
        inside = float((value.abs() < deviations).double().mean())
        assert abs(inside - share) < 5 * math.sqrt(share * (1 - share) / 10_000)


def test_no_uniform_number_is_too_small_for_the_inverse(monkeypatch):
    monkeypatch.setattr(build_from_parts.torch, "rand", lambda shape, generator: torch.zeros(shape))
    assert torch.isfinite(draw_new_tensors({NEWLINE: (4,)}, 0)[NEWLINE].value).all()


def test_a_seed_decides_the_new_tensors_and_nothing_else(built, tmp_path):
    again, other = build(parts(), tmp_path / "again", SEED), build(parts(), tmp_path / "other", SEED + 1)
    for path in built.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
        if path.suffix != ".safetensors":
            assert (other / path.name).read_bytes() == path.read_bytes(), path.name
    ours, theirs = tensors_of(built), tensors_of(other)
    different = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert different == {name for name in ours if name == NEWLINE or name.startswith(PROJECTOR)}


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    draw_new_tensors(SHAPES, SEED)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("layout", ["flat", "prefixed"])
def test_a_vision_part_alone_gives_the_same_tower(built, tmp_path, layout):
    alone = tmp_path / "vision"
    SiglipVisionModel.from_pretrained(SIGLIP, dtype=torch.float32).save_pretrained(alone)
    names = set(load_file(alone / "model.safetensors"))
    prefixed = any(name.startswith("vision_model.") for name in names)
    if prefixed != (layout == "prefixed"):
        tensors = load_file(alone / "model.safetensors")
        plain = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
        prefix = "vision_model." if layout == "prefixed" else ""
        renamed = {prefix + name: tensor for name, tensor in plain.items()}
        save_file(renamed, alone / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((alone / "config.json").read_text())["model_type"] == "siglip_vision_model"
    folder = build(parts(vision=alone), tmp_path / "out", SEED)
    ours, theirs = tensors_of(folder), tensors_of(built)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (folder / "config.json").read_bytes() == (built / "config.json").read_bytes()


def test_the_folder_is_complete(built):
    config = LladaVConfig.from_pretrained(built)
    assert (config.image_token_id, config.video_token_id, config.mask_token_id) == (126349, 126350, 126336)
    assert (config.output_vocab_size, config.text_config.max_position_embeddings) == (126349, 16384)
    assert json.loads((built / "config.json").read_text())["dtype"] == "bfloat16"
    assert len(LladaVProcessor.from_pretrained(built).tokenizer) == 126351


def answer(folder):
    model, info = LladaVForMaskedDiffusion.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    processor = LladaVProcessor.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=text, images=parity.picture("a5_tiny_gray.png"), return_tensors="pt")
    output = model.eval().generate(**inputs, max_new_tokens=4, block_length=4, max_denoising_steps=4)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, :length], inputs["input_ids"])
    return output[0, length:].tolist()


def test_the_folder_loads_and_answers(built):
    written = answer(built)
    assert written
    assert all(token < 126349 and token not in (126080, 126081, 126346, 126347) for token in written)


def share_heads(folder, repeat):
    """Give both heads the keys and values of the first, stored once or twice."""

    def change(tensors):
        for name in [name for name in tensors if name.endswith((".k_proj.weight", ".v_proj.weight"))]:
            tensors[name] = tensors[name][:8].repeat(repeat, 1)

    for file in folder.glob("*.safetensors"):
        change_tensors(file, change)
    change_config(folder, n_kv_heads=repeat)


def test_grouped_heads(tmp_path):
    """One key-value head for two heads computes what two equal ones do."""
    ids, logits = torch.tensor([[126080, 5, 6, 7, 126336, 126336]]), []
    for count in (1, 2):
        source = Path(shutil.copytree(LLADA, tmp_path / f"llada{count}"))
        share_heads(source, count)
        folder = build(parts(language=source), tmp_path / f"out{count}", SEED)
        model = LladaVForMaskedDiffusion.from_pretrained(folder, dtype=torch.float32).eval()
        assert model.config.text_config.num_key_value_heads == count
        assert model.model.language_model.layers[0].self_attn.k_proj.weight.shape == (8 * count, 16)
        logits.append(model(input_ids=ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)


def test_dtype_and_shards(built, tmp_path):
    folder = build(parts(), tmp_path / "out", SEED, dtype=torch.float32, max_shard_bytes=9_000_000)
    assert len(list(folder.glob("model-*-of-00002.safetensors"))) == 2
    ours, theirs = tensors_of(folder), tensors_of(built)
    assert all(torch.equal(ours[name], tensor.float()) for name, tensor in theirs.items())
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_positions(tmp_path):
    folder = build(parts(), tmp_path / "out", SEED, max_positions=4096)
    assert LladaVConfig.from_pretrained(folder).text_config.max_position_embeddings == 4096


def test_the_command_line(built, tmp_path, capsys):
    arguments = ["--language", str(LLADA), "--vision", str(SIGLIP), "--tokenizer", str(parity.OFFICIAL)]
    arguments += ["--seed", str(SEED)]
    before = sorted(tmp_path.iterdir())
    assert build_from_parts.main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before
    assert f"  (new) -> {NEWLINE}  [16] bfloat16" in shown
    assert "  model.transformer.wte.weight -> model.language_model.embed_tokens.weight  [126464, 16] bfloat16" in shown
    assert shown.endswith("left out: 67 tensors of the vision model that LLaDA-V does not use\n" + "".join(
        f"  {key}\n" for key in make_plan(parts(), SEED).dropped
    ))  # fmt: skip
    assert build_from_parts.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    for path in built.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert command_line.run(build_from_parts.main, [*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert command_line.run(build_from_parts.main, [*arguments, "--output", str(tmp_path / "x"), "--seed", "-1"]) == 1
    assert "seed=-1 must lie in 0.." in capsys.readouterr().err


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


def test_parts_from_the_hub(built, tmp_path):
    """A dry run downloads no weights; a build from Hub ids writes what a build from folders does."""
    arguments = ["--language", "them/llada", "--vision", "them/siglip", "--tokenizer", "them/tokenizer"]
    arguments += ["--seed", str(SEED), "--vision-revision", "main"]
    with HubServer() as hub:
        hub.add_repo("them/llada", LLADA)
        hub.add_repo("them/siglip", SIGLIP)
        hub.add_repo("them/tokenizer", parity.OFFICIAL)
        environment = os.environ | hub.environment(tmp_path / "home")
        code = FROM_THE_HUB.format(script="build_from_parts")
        scripts = Path(__file__).parent.parent / "conversion"
        command = ["-c", code, json.dumps(arguments), str(tmp_path / "out")]
        environment["PYTHONPATH"] = os.pathsep.join([str(scripts), *sys.path])  # the package that is tested here
        run = python_process.run(command, env=environment)
        assert run.returncode == 0, run.stderr
    for path in built.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_help():
    script = Path(__file__).parent.parent / "conversion" / "build_from_parts.py"
    shown = python_process.run([script, "--help"]).stdout
    for option in ("--language", "--vision", "--tokenizer", "--seed", "--max-positions", "--dtype", "--dry-run"):
        assert option in shown


def test_problems_of_all_parts_come_together(language, vision, refusal):
    change_config(language, alibi=True, scale_logits=True)
    (language / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    (language / "model-00002-of-00003.safetensors").unlink()
    change_config(vision, model_type="clip")
    (vision / "model.safetensors").write_bytes(b"")
    message = refusal(language=language, vision=vision, tokenizer=None)
    for part in (
        "language model: config.json has alibi=True; supported: False",
        "language model: config.json has scale_logits=True",
        "language model: pytorch_model.bin is a pickle, which can run any code",
        "language model: model-00002-of-00003.safetensors is missing",
        "vision tower: config.json has model_type='clip'",
        "vision tower: model.safetensors is truncated",
        "has no tokenizer.json; give --tokenizer a folder or Hub id",
    ):
        assert part in message
    assert message.count("\n- ") == 7


def test_all_wrong_tensors_are_in_one_message(language, vision, refusal):
    def change_language(tensors):
        del tensors["model.transformer.blocks.1.attn_norm.weight"]
        tensors["model.transformer.blocks.1.attn_norm.bias"] = torch.zeros(16)
        tensors["model.transformer.wpe.weight"] = torch.zeros(4, 16)

    def change_vision(tensors):
        tensors["vision_model.embeddings.patch_embedding.bias"] = torch.zeros(31)
        tensors["logit_offset"] = torch.zeros(1)

    holds = "model.transformer.blocks.1.attn_norm.weight"
    (file,) = [file for file in language.glob("*.safetensors") if holds in load_file(file)]
    change_tensors(file, change_language)
    change_tensors(vision / "model.safetensors", change_vision)
    (language / "model.safetensors.index.json").unlink()
    message = refusal(language=language, vision=vision)
    assert "missing tensor: model.language_model.layers.1.input_layernorm.weight [16]" in message
    assert f"unexpected tensor: model.transformer.blocks.1.attn_norm.bias in {file.name}, shape [16]" in message
    assert f"unexpected tensor: model.transformer.wpe.weight in {file.name}, shape [4, 16]" in message
    assert "wrong shape: vision_model.embeddings.patch_embedding.bias in model.safetensors is [31]" in message
    assert "unexpected tensor: logit_offset in model.safetensors, shape [1]" in message
    assert message.count("\n- ") == 5


def test_a_tensor_under_both_names(vision, refusal):
    change_tensors(
        vision / "model.safetensors", lambda tensors: tensors.update({"post_layernorm.bias": torch.zeros(32)})
    )
    message = refusal(vision=vision)
    assert "vision tower: vision_model.post_layernorm.bias and post_layernorm.bias are the same tensor" in message
    assert message.count("\n- ") == 1


def test_nan_is_refused_while_it_is_copied(vision, refusal):
    change_tensors(
        vision / "model.safetensors", lambda tensors: tensors["vision_model.post_layernorm.bias"].fill_(math.nan)
    )
    assert "vision_model.post_layernorm.bias in model.safetensors holds 32 NaN" in refusal(vision=vision)


def test_a_dropped_nan_does_no_harm(vision, tmp_path, built):
    change_tensors(vision / "model.safetensors", lambda tensors: tensors["vision_model.head.probe"].fill_(math.nan))
    folder = build(parts(vision=vision), tmp_path / "out", SEED)
    assert (folder / "model.safetensors").read_bytes() == (built / "model.safetensors").read_bytes()


def test_neither_folder_nor_id(refusal):
    message = refusal(language="nowhere", vision="nothing at all", tokenizer=parity.OFFICIAL)
    assert "language model: nowhere is neither a folder nor a Hub id" in message
    assert "vision tower: nothing at all is neither a folder nor a Hub id" in message


def test_another_tokenizer(tmp_path, language, refusal):
    change_config(language, mask_token_id=126337, eos_token_id=126083)
    message = refusal(language=language)
    assert "the tokenizer has <|mdm_mask|> as 126336, not as 126337" in message
    assert "the tokenizer has <|endoftext|> as 126081, not as 126083" in message


def test_a_tokenizer_with_placeholders(tmp_path, refusal):
    tokenizer = AutoTokenizer.from_pretrained(parity.OFFICIAL)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert "has <image> in its vocabulary already; give LLaDA's own" in refusal(tokenizer=tmp_path / "tokenizer")


def test_the_tokenizer_may_lie_beside_the_language_model(language, tmp_path, built):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(parity.OFFICIAL / name, language / name)
    folder = build(parts(language=language, tokenizer=None), tmp_path / "out", SEED)
    assert (folder / "tokenizer.json").read_bytes() == (built / "tokenizer.json").read_bytes()


def test_sizes_that_do_not_fit_each_other(language, refusal):
    change_config(language, n_heads=3, n_kv_heads=3)
    assert "hidden_size=16 is not a multiple of num_attention_heads=3" in refusal(language=language)


@pytest.mark.parametrize(("seed", "positions"), [(2**64, 16384), (0, 0)])
def test_impossible_numbers(tmp_path, seed, positions):
    with pytest.raises(ValueError, match=r"seed=18446744073709551616 must lie in|max_positions=0 must be at least 1"):
        build(parts(), tmp_path / "out", seed, positions)
    assert list(tmp_path.iterdir()) == []
