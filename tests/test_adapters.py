"""Adapters answer as trained however they are loaded, merged or switched, and one that does not fit is refused."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, LlamaConfig
from transformers.generation.streamers import BaseStreamer
from typer.testing import CliRunner

import parity
from conftest import official_config, tiny_config
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVForMaskedDiffusion, LladaVProcessor, adapters, cli_adapters
from transformers_lladav.adapter_fit import BASE_FILE, LAYERS, check_files, quantization_of
from transformers_lladav.adapters import AdapterError, attach_adapter, check_base, load_with_adapter, merge
from transformers_lladav.recipes import RECIPES, Lora
from transformers_lladav.trainable import prepare_trainable

SCENE = Path(__file__).parent.parent / "model_cards" / "assets" / "scene.png"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def inputs():
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": str(SCENE)}, {"type": "text", "text": "Describe the picture."}],
        }
    ]
    return LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT).apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def load_base(source=BUNDLED_CHECKPOINT, dtype=torch.float32):
    return AutoModelForImageTextToText.from_pretrained(source, dtype=dtype).eval()


def train(model, seed, recipe=RECIPES["lora"], size=0.05):
    """Stands in for training: every weight that would be trained moves."""
    prepared = prepare_trainable(model, recipe).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prepared.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return prepared


def save(prepared, folder):
    prepared.save_pretrained(folder)
    adapters.write_base(prepared, folder)
    (folder / "recipe.json").write_text(RECIPES["lora"].to_json())
    return folder


@pytest.fixture(scope="module")
def logits(inputs):
    @torch.no_grad()
    def run(model):
        return model(**inputs).logits.float()

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, logits):
    """Two adapters of the bundled checkpoint: folder and logits of each, the latter without saving and loading."""
    found = []
    for seed in (1, 2):
        prepared = train(load_base(), seed)
        found.append((save(prepared, tmp_path_factory.mktemp("trained") / "adapter"), logits(prepared)))
    return found


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0][0]


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the first adapter to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "adapter"))


@pytest.fixture(scope="module")
def base_logits(logits):
    return logits(load_base())


def by_transformers(folder):
    model = load_base()
    model.load_adapter(folder)
    return model


WAYS = {
    "PeftModel.from_pretrained": lambda folder: peft.PeftModel.from_pretrained(load_base(), folder),
    "model.load_adapter": by_transformers,
    "AutoModel": lambda folder: AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32),
    "attach_adapter": lambda folder: attach_adapter(load_base(), folder),
    "load_with_adapter": lambda folder: load_with_adapter(folder, dtype=torch.float32),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_loading_gives_what_was_trained(way, trained, logits, base_logits):
    folder, expected = trained[0]
    model = WAYS[way](folder)
    assert not model.training
    assert torch.equal(logits(model), expected)
    assert (expected - base_logits).abs().max() > 1


def test_a_merged_model_says_what_base_and_adapter_say(trained, logits, inputs, tmp_path):
    folder, expected = trained[0]
    merged = merge(folder, tmp_path / "merged", dtype=torch.float32)
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()), info
    assert type(model) is LladaVForMaskedDiffusion
    assert model.dtype == merged.dtype == torch.float32
    assert merged.parameters == sum(parameter.numel() for parameter in load_base().parameters())
    assert (merged.base, merged.notes) == (str(BUNDLED_CHECKPOINT), [])
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=1e-5)
    assert (tmp_path / "merged" / "recipe.json").read_bytes() == (folder / "recipe.json").read_bytes()
    again = AutoProcessor.from_pretrained(tmp_path / "merged")
    assert again.chat_template == LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT).chat_template
    assert (tmp_path / "merged" / "modeling_lladav.py").exists()
    assert not list((tmp_path / "merged").glob("adapter*"))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_merging_rounds_once_to_the_type_asked_for(dtype, folder, tmp_path):
    merge(folder, tmp_path / "wide", dtype=torch.float32)
    merged = merge(folder, tmp_path / "merged", dtype=dtype)
    stored = json.loads((BUNDLED_CHECKPOINT / "config.json").read_text())["dtype"]
    kind = dtype or getattr(torch, stored)
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "merged"))
    assert {value.dtype for value in narrow.values()} == {kind} == {merged.dtype}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")
    if getattr(torch, stored) == kind:
        assert all(torch.equal(narrow[name], value.to(kind)) for name, value in wide.items())


def test_adapters_are_switched_back_and_forth_and_off(trained, logits, base_logits):
    (first, first_logits), (second, second_logits) = trained
    model = attach_adapter(load_base(), first, "one")
    assert attach_adapter(model, second, "two") is model
    assert not torch.equal(first_logits, second_logits)
    assert torch.equal(logits(model), first_logits)
    for name, expected in (("two", second_logits), ("one", first_logits)):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), base_logits)
    assert torch.equal(logits(model), first_logits)
    with pytest.raises(ValueError, match="name='one' is taken; the model holds one, two: choose another"):
        attach_adapter(model, second, "one")
    with pytest.raises(ValueError, match=r"name='a\.b': give a name without dots"):
        attach_adapter(model, second, "a.b")


def test_transformers_own_adapters_are_switched_as_well(trained, logits, base_logits):
    model = load_base()
    for name, (folder, _) in zip(("one", "two"), trained, strict=True):
        model.load_adapter(folder, adapter_name=name)
    for name, (_, expected) in zip(("one", "two"), trained, strict=True):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected)
    model.disable_adapters()
    assert torch.equal(logits(model), base_logits)
    with pytest.raises(ValueError, match="the model holds adapters by its own load_adapter"):
        attach_adapter(model, trained[0][0])


class Recorded(BaseStreamer):
    """Keeps what a streamer is given."""

    def __init__(self):
        self.blocks, self.ended = [], False

    def put(self, value):
        self.blocks.append(value.reshape(-1).tolist())

    def end(self):
        self.ended = True


def test_generate_and_score_go_through(inputs, tmp_path):
    folder = save(train(load_base(), 3, size=0.2), tmp_path)  # far enough for another answer
    settings = {"max_new_tokens": 16, "block_length": 4, "max_denoising_steps": 8}
    answers = []
    wrapped, injected = load_with_adapter(folder, dtype=torch.float32), by_transformers(folder)
    for model in (wrapped, injected, load_base()):
        streamer = Recorded()
        sequence = model.generate(**inputs, **settings, streamer=streamer)[0].tolist()
        assert streamer.ended
        assert [token for block in streamer.blocks for token in block][: len(sequence)] == sequence
        answers.append(sequence)
    assert answers[0] == answers[1] != answers[2]
    output = wrapped.generate(**inputs, **settings, return_dict_in_generate=True)
    assert output.sequences[0].tolist() == answers[0]
    tokenizer = LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT).tokenizer
    rated = [
        model.score(**inputs, answers=["red", "a blue star"], tokenizer=tokenizer).log_likelihoods.tolist()
        for model in (wrapped, injected, load_base())
    ]
    assert rated[0] == rated[1]
    assert max(abs(ours - plain) for ours, plain in zip(rated[0], rated[2], strict=True)) > 0.1


def test_an_adapter_runs_on_a_base_in_half_precision(trained, logits):
    folder, expected = trained[0]
    for model in (
        load_with_adapter(folder, dtype=torch.bfloat16),
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16),
    ):
        found = logits(model)
        assert nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPES["lora"], lora=Lora(rank=2, dora=True)),
        replace(RECIPES["lora"], lora=Lora(rank=4, rslora=True), trains=("projector", "head")),
        replace(RECIPES["lora"], lora=Lora(targets=r".*vision_tower.*\.(fc1|fc2)"), trains=()),
    ],
    ids=["dora", "head", "tower"],
)
def test_other_recipes_come_back_and_merge(recipe, tmp_path, logits):
    prepared = train(load_base(), 5, recipe)
    expected = logits(prepared)
    save(prepared, tmp_path / "adapter")
    assert torch.equal(logits(load_with_adapter(tmp_path / "adapter", dtype=torch.float32)), expected)
    merge(tmp_path / "adapter", tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(load_base(tmp_path / "merged")), expected, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),  # the vision tower's as well
        peft.LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False),
        peft.LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"], init_lora_weights=False),
    ],
    ids=["list", "loha", "embeddings"],
)
def test_adapters_from_elsewhere_are_checked_by_their_tensors_alone(config, tmp_path, logits):
    torch.manual_seed(3)
    prepared = peft.get_peft_model(load_base(), config).eval()
    prepared.save_pretrained(tmp_path)
    model = load_base()
    assert check_base(tmp_path, model) == []
    assert torch.equal(logits(attach_adapter(model, tmp_path)), logits(prepared))


# What an adapter says about its base.


def test_a_base_is_described_by_its_sizes(folder):
    written = json.loads((folder / BASE_FILE).read_text())
    assert written == adapters.describe_base(load_base())
    assert (written["model_type"], written["name_or_path"]) == ("lladav", str(BUNDLED_CHECKPOINT))
    assert written["quantization"] is None
    expected = {
        "text_config.hidden_size": 128, "text_config.num_hidden_layers": 4, "text_config.num_attention_heads": 4,
        "vision_config.hidden_size": 128, "vision_config.image_size": 96, "vision_config.patch_size": 16,
    }  # fmt: skip
    assert written["sizes"].items() >= expected.items()
    parts = {"vision_tower", "projector", "newline", "language_model", LAYERS, "head"}
    assert set(written["fingerprints"]) == parts
    assert len(set(written["fingerprints"].values())) == len(parts)


def fingerprints(model):
    return adapters.describe_base(model)["fingerprints"]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_fingerprint_does_not_depend_on_the_type_of_loading(stored, tmp_path):
    model = load_base()
    with torch.no_grad():  # values of every size that weights have
        for parameter in model.parameters():
            parameter.mul_(torch.logspace(-6, 0, parameter.numel()).view_as(parameter))
    model.to(stored).save_pretrained(tmp_path, save_original_format=False)
    expected = fingerprints(load_base(tmp_path, torch.float32))
    half = load_base(tmp_path, torch.bfloat16)
    before = {name: value.clone() for name, value in half.state_dict().items()}
    assert fingerprints(half) == expected
    assert all(torch.equal(value, before[name]) for name, value in half.state_dict().items())
    if stored == torch.bfloat16:
        assert fingerprints(load_base(tmp_path, torch.float16)) == expected


def test_a_fingerprint_is_that_of_the_base_whatever_is_beside_it(folder, trained):
    expected = fingerprints(load_base())
    prepared = train(load_base(), 7)
    several = attach_adapter(attach_adapter(load_base(), folder), trained[1][0], "two")
    for model in (prepared, prepared.get_base_model(), several, by_transformers(folder)):
        assert fingerprints(model) == expected


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ("model.vision_tower.encoder.layers.1.mlp.fc1.weight", "vision_tower"),
        ("model.multi_modal_projector.linear_2.bias", "projector"),
        ("model.image_newline", "newline"),
        ("model.language_model.norm.weight", "language_model"),
        ("model.language_model.layers.2.mlp.down_proj.weight", LAYERS),
        ("lm_head.weight", "head"),
    ],
)
def test_other_weights_are_told_by_their_part(changed, part, folder):
    model = load_base()
    assert check_base(folder, model) == []
    with torch.no_grad():
        model.get_parameter(changed).mul_(1.02)
    (text,) = check_base(folder, model)
    assert f"was trained on {BUNDLED_CHECKPOINT}" in text
    assert text.split("other weights in: ")[1].split(";")[0] == part.replace("_", " ")
    with pytest.warns(UserWarning, match="other weights in: " + part.replace("_", " ")):
        attach_adapter(model, folder)


def test_what_is_quantised_or_elsewhere_is_left_out(folder):
    expected = fingerprints(load_base())
    model = load_base()
    layer = model.model.language_model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)
    model.lm_head.to("meta")
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    found = fingerprints(model)
    assert adapters.describe_base(model)["quantization"] == "nf4"
    assert found == {part: value for part, value in expected.items() if part not in (LAYERS, "head")}
    assert check_base(folder, model) == []


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "nf4"),
        (BitsAndBytesConfig(load_in_8bit=True).to_dict(), "int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        (None, None),
    ],
)
def test_how_a_base_is_quantised(settings, kind):
    config = tiny_config()
    if settings is not None:
        config.quantization_config = settings
    assert quantization_of(config) == kind


# Adapters that do not fit.


def refused(folder, model):
    """The problems, after which the model is as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AdapterError) as error:
        attach_adapter(model, folder)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    return error.value.problems


def base_with(**text):
    """A model of the bundled checkpoint's sizes but for some of the text's."""
    config = type(load_base().config).from_pretrained(BUNDLED_CHECKPOINT)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return LladaVForMaskedDiffusion(config).eval()


def test_other_sizes_are_named(folder):
    problems = refused(folder, base_with(intermediate_size=200))
    assert problems[0] == "text_config.intermediate_size is 384 in the adapter, 200 in the base"
    # Of each layer: what goes into gate and up is as wide as before, what comes out is not; down the other way round.
    assert problems[1].startswith("12 of the adapter's 60 tensors have another shape: ")
    assert (
        "model.language_model.layers.0.mlp.down_proj.lora_A.weight is [16, 384], the base needs [16, 200]"
        in (problems[1])
    )
    assert problems[1].count(" is [") == 3
    assert problems[1].endswith(", ...")
    assert len(problems) == 2


def test_layers_that_are_not_there_are_named(own):
    (own / BASE_FILE).unlink()
    (problem,) = refused(own, base_with(num_hidden_layers=2))
    # Seven matrices of the third and the fourth layer, with A and B.
    assert problem.startswith(
        "28 of the adapter's 60 tensors have no place in the base: model.language_model.layers.2."
    )
    (problem,) = refused(own, base_with(num_hidden_layers=5))
    assert problem.startswith("14 of 74 tensors that the base has a place for are not in the adapter: ")


def test_target_modules_that_hit_nothing_are_named(own):
    (own / BASE_FILE).unlink()
    settings = json.loads((own / "adapter_config.json").read_text()) | {"target_modules": ["query_key_value"]}
    (own / "adapter_config.json").write_text(json.dumps(settings))
    (problem,) = refused(own, load_base())
    assert problem.startswith("target_modules={'query_key_value'} fit no layer of the base: ")


def test_weights_of_the_model_itself_are_no_adapter(own):
    tensors = load_file(own / WEIGHTS)
    name = "base_model.model.model.language_model.norm.weight"
    save_file({**tensors, name: torch.zeros(128)}, own / WEIGHTS)
    (problem,) = refused(own, load_base())
    assert problem == "1 of the adapter's 61 tensors have no place in the base: model.language_model.norm.weight"


def test_another_model_type_is_named(own, tmp_path):
    with pytest.raises(AdapterError, match="it is for a 'lladav' model, but the base is a 'llama'"):
        adapters.check_fit(own, LlamaConfig())
    LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "llama")
    with pytest.raises(AdapterError, match="llama is a 'llama'"):  # there are no weights to load
        load_with_adapter(own, tmp_path / "llama")


def test_prompts_are_refused(own):
    peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM").save_pretrained(own)
    with pytest.raises(AdapterError, match="peft_type='PROMPT_TUNING' is a prompt"):
        attach_adapter(load_base(), own)


def test_pickles_and_halves_are_refused(own, tmp_path):
    (own / "adapter_model.bin").write_bytes(b"never opened")
    check_files(own)  # PEFT takes the safetensors
    (own / WEIGHTS).rename(tmp_path / "aside")
    with pytest.raises(
        AdapterError, match=r"adapter_model\.bin is a pickle, which can run any code .* as safetensors"
    ):
        attach_adapter(load_base(), own)
    (own / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is missing; save the adapter with"):
        load_with_adapter(own)
    (own / WEIGHTS).write_bytes((tmp_path / "aside").read_bytes()[:1000])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is truncated or damaged"):
        attach_adapter(load_base(), own)
    (own / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing; give the folder"):
        attach_adapter(load_base(), own)
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a Hub id"):
        attach_adapter(load_base(), tmp_path / "gone")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("/gone/base", r"was trained on the base model /gone/base, which is not here; say where .* --model FOLDER"),
        ("../gone", r"which is not here, seen from /.*; say where it is with base="),
        ("runs/base", r"runs/base, which is neither a folder here nor can be loaded from the Hub; say where it is"),
        (None, "does not name its base model; say where it is with base="),
        (5, "does not name its base model; say where it is with base="),
    ],
)
def test_a_base_that_is_not_here_is_asked_for(named, message, own, logits, trained):
    settings = json.loads((own / "adapter_config.json").read_text()) | {"base_model_name_or_path": named}
    (own / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(OSError, match=message):
        load_with_adapter(own)
    model = load_with_adapter(own, BUNDLED_CHECKPOINT, dtype=torch.float32)
    assert torch.equal(logits(model), trained[0][1])


def test_a_revision_that_the_adapter_names_is_that_of_the_base(own, monkeypatch):
    settings = {"base_model_name_or_path": "owner/base", "revision": "abc"}
    settings = json.loads((own / "adapter_config.json").read_text()) | settings
    (own / "adapter_config.json").write_text(json.dumps(settings))
    asked = []
    monkeypatch.setattr(
        adapters.AutoConfig, "from_pretrained", lambda *given, **kw: asked.append((*given, kw)) or LlamaConfig()
    )
    for base in (None, "owner/other"):
        with pytest.raises(AdapterError):
            load_with_adapter(own, base)
    assert asked == [("owner/base", {"revision": "abc"}), ("owner/other", {})]


def test_the_official_layout_is_a_base_like_any_other(tmp_path):
    given = {"config": official_config(), "dtype": torch.float32}
    prepared = train(AutoModelForImageTextToText.from_pretrained(parity.OFFICIAL, **given), 6)
    save(prepared, tmp_path / "adapter")
    tokens = torch.arange(40)[None]
    expected = prepared(tokens).logits
    injected = AutoModelForImageTextToText.from_pretrained(parity.OFFICIAL, **given)
    assert not torch.equal(injected(tokens).logits, expected)
    injected.load_adapter(tmp_path / "adapter")
    for model in (injected, load_with_adapter(tmp_path / "adapter", parity.OFFICIAL, **given)):
        assert torch.equal(model(tokens).logits, expected)
    vision = parity.FOLDER / "checkpoint-siglip" / "config.json"
    read = load_with_adapter(tmp_path / "adapter", parity.OFFICIAL, vision_config=vision, dtype=torch.float32)
    assert torch.equal(read(tokens).logits, expected)


def test_the_processor_is_the_adapters_own_if_it_has_one(own):
    assert adapters.load_processor(own).chat_template == adapters.load_processor(own, BUNDLED_CHECKPOINT).chat_template
    processor = LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT)
    processor.chat_template = "changed"
    processor.save_pretrained(own)
    assert adapters.load_processor(own, "/gone").chat_template == "changed"


# Merging.


def test_a_quantised_base_is_not_merged_into(own, tmp_path):
    base = Path(shutil.copytree(BUNDLED_CHECKPOINT, tmp_path / "base"))
    settings = json.loads((base / "config.json").read_text())
    settings["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").to_dict()
    (base / "config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError) as error:
        merge(own, tmp_path / "merged", base)
    (problem,) = error.value.problems
    assert problem.startswith("its weights are quantised (nf4)")
    assert problem.endswith(f"lladav merge {own} {tmp_path / 'merged'} --model UNQUANTISED")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_a_quantised_base_is_merged_with_a_note(own, tmp_path):
    described = json.loads((own / BASE_FILE).read_text()) | {"quantization": "nf4"}
    del described["fingerprints"][LAYERS]
    adapters.write_base(described, own)
    (note,) = merge(own, tmp_path / "merged").notes
    assert note.startswith("the adapter was trained beside weights rounded to nf4")


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (1e6, torch.float16)])
def test_what_is_not_finite_is_not_written(value, dtype, own, tmp_path):
    tensors = load_file(own / WEIGHTS)
    name = "base_model.model.model.multi_modal_projector.linear_1.bias"
    tensors[name][0] = value
    save_file(tensors, own / WEIGHTS)
    with pytest.raises(
        AdapterError, match=r"1 merged tensors hold NaN or infinity: model\.multi_modal_projector\.lin"
    ):
        merge(own, tmp_path / "merged", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_place_that_cannot_take_it_is_refused_before_loading(own, tmp_path, monkeypatch):
    other = base_with(intermediate_size=200).config
    monkeypatch.setattr(
        adapters.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        merge(own, own)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(OSError, match=r"needs 0\.00 GB, but its disk has 0\.00 GB free"):
            merge(own, tmp_path / "merged")
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(AdapterError, match=r"text_config\.intermediate_size is 384"):
        merge(own, tmp_path / "merged", tmp_path / "base")


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(cli_adapters.merge)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_merges(command, own, tmp_path):
    model = load_base()
    with torch.no_grad():
        model.model.image_newline.mul_(2)
    model.save_pretrained(tmp_path / "base", save_original_format=False)
    LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT).save_pretrained(tmp_path / "base")
    ran = command(own, tmp_path / "merged", "--model", tmp_path / "base", "--dtype", "bfloat16")
    assert ran.exit_code == 0, ran.exception
    assert load_base(tmp_path / "merged", "auto").dtype == torch.bfloat16
    assert f"lladav ask PICTURE QUESTION --model {tmp_path / 'merged'}" in ran.output
    assert "other weights in: newline" in " ".join(ran.output.split())


def test_folders_are_named_as_they_are_called(command, own, tmp_path):
    """Square brackets are no markup."""
    ran = command(own, tmp_path / "[v1]merged[/v1]")
    assert ran.exit_code == 0, ran.exception
    assert f"lladav ask PICTURE QUESTION --model {tmp_path / '[v1]merged[/v1]'}" in ran.output


# Without the package.

WITHOUT_PACKAGE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_remote_code import PackageBlocker, outcome
sys.meta_path.insert(0, PackageBlocker())
import peft, torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
base, adapter, results = sys.argv[2:]
load = lambda folder: AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(base, trust_remote_code=True)
wrapped, injected = peft.PeftModel.from_pretrained(load(base), adapter), load(adapter)
assert type(injected).__module__.startswith("transformers_modules")
assert not any(name.split(".")[0] == "transformers_lladav" for name in sys.modules)
save_file(outcome(wrapped, processor), results + "/wrapped.safetensors")
save_file(outcome(injected, processor), results + "/injected.safetensors")
"""


def test_adapters_load_without_the_package(converted_folder, tmp_path):
    from test_remote_code import outcome

    prepared = train(load_base(converted_folder), 9)
    save(prepared, tmp_path / "adapter")
    expected = outcome(prepared, LladaVProcessor.from_pretrained(converted_folder))
    places = (Path(__file__).parent, converted_folder, tmp_path / "adapter", tmp_path)
    command = [sys.executable, "-I", "-c", WITHOUT_PACKAGE, *map(str, places)]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    plain = outcome(load_base(converted_folder), LladaVProcessor.from_pretrained(converted_folder))
    for name in ("wrapped", "injected"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found[kind], expected[kind]) for kind in expected)
        assert not torch.equal(found["picture/logits"], plain["picture/logits"])


def test_no_warning_without_a_reason(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_with_adapter(folder, dtype=torch.float32)
