"""Official checkpoints load without conversion as what the converter writes: logits, processor, settings."""

import json
import os
import shutil

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, pipeline

import parity
import python_process
from hub_server import HubServer
from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion, LladaVProcessor
from transformers_lladav.official_folder_lladav import OfficialCheckpointError

SIGLIP = parity.FOLDER / "checkpoint-siglip"
PICTURE = parity.FOLDER / "images" / "a5_tiny_gray.png"
SHORT = {"max_new_tokens": 8, "block_length": 4, "max_denoising_steps": 8}
LENGTHS = ("max_new_tokens", "block_length", "max_denoising_steps")
MODEL_CLASSES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForMaskedLM")
GONE = {"AutoConfig": "gone.GoneConfig", "AutoModel": "gone.GoneModel", "AutoModelForCausalLM": "gone.GoneModel"}


def chat(text="What is this?"):
    content = [{"type": "image", "path": str(PICTURE)}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def inputs_of(processor):
    return processor.apply_chat_template(
        chat(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs, logits_to_keep=8).logits


@pytest.fixture(scope="module")
def converted(converted_folder):
    return LladaVForMaskedDiffusion.from_pretrained(converted_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def inputs(converted_folder):
    return inputs_of(LladaVProcessor.from_pretrained(converted_folder))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder like the release, whose tower has SigLIP2-so400m's width, and the model it was written from.

    Two key-value heads, two vision layers, and an `auto_map` to modules that are not there.
    """
    official = json.loads((parity.OFFICIAL / "config.json").read_text())
    official |= {"num_hidden_layers": 2, "num_key_value_heads": 2, "mm_hidden_size": 1152, "auto_map": GONE}
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads")
    sizes = {name: official[name] for name in (*names, "num_attention_heads", "max_position_embeddings")}
    tower = {"hidden_size": 1152, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 16}
    torch.manual_seed(0)
    model = LladaVForMaskedDiffusion(
        LladaVConfig(
            text_config=sizes, vision_config=tower | {"image_size": 384, "patch_size": 14, "vision_use_head": False}
        )
    ).eval()
    folder = tmp_path_factory.mktemp("released")
    model.save_pretrained(folder, save_original_format=True)
    for path in parity.OFFICIAL.glob("*.json"):
        if "safetensors" not in path.name:
            shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps(official))
    return folder, model


def settings(made):
    """A configuration or image processor without what says where it comes from."""
    return {name: value for name, value in made.to_dict().items() if name not in ("_name_or_path", "auto_map")}


@pytest.mark.parametrize("kind", [LladaVConfig, AutoConfig])
def test_the_configuration_is_the_converted_one(kind, converted_folder):
    config = kind.from_pretrained(parity.OFFICIAL, vision_config=SIGLIP)
    assert type(config) is LladaVConfig
    assert settings(config) == settings(LladaVConfig.from_pretrained(converted_folder))
    assert config.dtype == torch.bfloat16


def test_options_of_transformers_still_work():
    config, unused = AutoConfig.from_pretrained(
        parity.OFFICIAL, vision_config=SIGLIP, max_tiles=2, nonsense=1, return_unused_kwargs=True
    )
    assert config.max_tiles == 2
    assert unused == {"nonsense": 1}
    config = LladaVConfig.from_pretrained(
        parity.OFFICIAL.parent, subfolder="checkpoint-official", vision_config=SIGLIP
    )
    assert config.vision_config.num_hidden_layers == 3
    from_file = LladaVConfig.from_pretrained(parity.OFFICIAL / "config.json", vision_config=SIGLIP)
    assert settings(from_file) == settings(config)


def test_a_native_configuration_takes_vision_sizes_as_before(converted_folder):
    config = LladaVConfig.from_pretrained(converted_folder, vision_config={"num_attention_heads": 8})
    assert (config.vision_config.num_attention_heads, config.vision_config.hidden_size) == (8, 32)


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_auto_classes_give_the_logits_of_the_converted_folder(name, converted, inputs):
    model, info = getattr(transformers, name).from_pretrained(
        parity.OFFICIAL, vision_config=SIGLIP, dtype=torch.float32, output_loading_info=True
    )
    assert type(model) is LladaVForMaskedDiffusion
    assert not any(info.values()), info
    assert torch.equal(logits(model, inputs), logits(converted, inputs))


def test_the_class_gives_the_logits_of_the_converted_folder(converted, inputs):
    model, info = LladaVForMaskedDiffusion.from_pretrained(
        parity.OFFICIAL, vision_config=SIGLIP, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert torch.equal(logits(model, inputs), logits(converted, inputs))


@pytest.mark.parametrize(
    "kind", [LladaVConfig, AutoConfig, AutoProcessor, LladaVForMaskedDiffusion, transformers.AutoModel]
)
def test_a_number_of_heads_that_cannot_be_known_is_asked_for(kind):
    with pytest.raises(OfficialCheckpointError, match=r"hidden_size=32, and its number of .* heads.*vision_config="):
        kind.from_pretrained(parity.OFFICIAL)


def test_tokenizer_and_processor_do_not_need_the_heads(inputs):
    assert len(AutoTokenizer.from_pretrained(parity.OFFICIAL)) == parity.TOKENS
    ours = inputs_of(LladaVProcessor.from_pretrained(parity.OFFICIAL))
    assert all(torch.equal(ours[name], inputs[name]) for name in inputs)


@pytest.mark.parametrize("kind", [LladaVProcessor, AutoProcessor])
def test_the_processor_is_the_converted_one(kind, converted_folder, inputs, tmp_path):
    made = kind.from_pretrained(parity.OFFICIAL, vision_config=SIGLIP)
    expected = LladaVProcessor.from_pretrained(converted_folder)
    assert type(made) is LladaVProcessor
    assert settings(made.image_processor) == settings(expected.image_processor)
    assert made.chat_template == made.tokenizer.chat_template == expected.tokenizer.chat_template
    assert made.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    made.save_pretrained(tmp_path)
    assert not any("vision_config" in path.read_text() for path in tmp_path.glob("*.json"))
    for processor in (made, LladaVProcessor.from_pretrained(tmp_path)):
        ours = inputs_of(processor)
        assert ours.keys() == inputs.keys()
        assert all(torch.equal(ours[name], inputs[name]) for name in inputs)


def test_a_processor_that_was_saved_needs_no_configuration(tmp_path, inputs, converted_folder):
    LladaVProcessor.from_pretrained(parity.OFFICIAL).save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    saved = LladaVProcessor.from_pretrained(tmp_path, vision_config=SIGLIP)
    assert "vision_config" not in saved.tokenizer.init_kwargs
    assert torch.equal(inputs_of(saved)["input_ids"], inputs["input_ids"])
    shutil.copy(parity.OFFICIAL / "config.json", tmp_path)
    LladaVProcessor.from_pretrained(converted_folder, max_tiles=2).save_pretrained(tmp_path)
    assert LladaVProcessor.from_pretrained(tmp_path).image_processor.max_tiles == 2


def test_a_problem_of_the_configuration_never_gives_a_bare_tokenizer(tmp_path):
    shutil.copytree(parity.OFFICIAL, tmp_path, dirs_exist_ok=True)
    official = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(official | {"mm_projector_type": "linear"}))
    with pytest.raises(OfficialCheckpointError, match="mm_projector_type='linear'; supported: 'mlp2x_gelu'"):
        AutoProcessor.from_pretrained(tmp_path)


def test_the_dtype_is_the_official_one_on_request():
    config = AutoConfig.from_pretrained(parity.OFFICIAL, vision_config=SIGLIP)
    load = LladaVForMaskedDiffusion.from_pretrained
    assert load(parity.OFFICIAL, config=config, dtype="auto").dtype == torch.bfloat16
    assert load(parity.OFFICIAL, config=config, dtype=torch.float16).dtype == torch.float16


def test_what_was_loaded_is_saved_as_a_native_folder(tmp_path, converted, converted_folder, inputs):
    config = AutoConfig.from_pretrained(parity.OFFICIAL, vision_config=SIGLIP)
    model = LladaVForMaskedDiffusion.from_pretrained(parity.OFFICIAL, config=config, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    stored, expected = (json.loads((path / "config.json").read_text()) for path in (tmp_path, converted_folder))
    assert set(stored) == set(expected) - {"auto_map"}
    assert stored["model_type"] == "lladav"
    again, info = LladaVForMaskedDiffusion.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(again, inputs), logits(converted, inputs))


def test_generation_without_any_settings_is_that_of_the_converted_folder(converted):
    config = AutoConfig.from_pretrained(parity.OFFICIAL, vision_config=SIGLIP)
    model = LladaVForMaskedDiffusion.from_pretrained(parity.OFFICIAL, config=config, dtype=torch.float32)
    found = []
    for each in (model, converted):
        settings, _ = each._prepare_settings(None, None, {})
        assert settings.schedule() == (128, 128, 128)
        assert (settings.stop_token_ids, settings.pad_token_id, settings.mask_token_id) == ([126348], 126081, 126336)
        kept = settings.to_dict()
        found.append({name: kept[name] for name in kept if name not in (*LENGTHS, "bos_token_id")})
    assert found[0] == found[1]
    prompt = torch.tensor([[126080, 5, 6, 7]])
    ours, theirs = (each.generate(prompt, **SHORT) for each in (model, converted))
    assert ours.shape == (1, 12)
    assert torch.equal(ours, theirs)


def test_the_release_needs_nothing_but_its_name(released, tmp_path):
    folder, written = released
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.config.text_config.num_key_value_heads == 2
    assert (model.config.vision_config.num_hidden_layers, model.config.vision_config.intermediate_size) == (2, 16)
    inputs = inputs_of(AutoProcessor.from_pretrained(folder))
    assert torch.equal(logits(model, inputs), logits(written, inputs))
    assert torch.equal(model.generate(**inputs, **SHORT), written.generate(**inputs, **SHORT))


@pytest.mark.parametrize("trust", [None, False, True])
def test_code_that_an_official_configuration_names_is_not_asked_for(released, trust):
    folder, _ = released
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=trust)) is LladaVConfig
    assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=trust)) is LladaVProcessor
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
    assert type(model) is LladaVForMaskedDiffusion
    assert getattr(model.config, "auto_map", None) is None


def test_the_pipeline_answers(released):
    folder, written = released
    pipe = pipeline("image-text-to-text", model=str(folder), dtype=torch.float32)
    answer = pipe(text=chat(), generate_kwargs=SHORT, return_full_text=False)[0]["generated_text"]
    inputs = inputs_of(pipe.processor)
    ids = written.generate(**inputs, **SHORT)[0, inputs["input_ids"].shape[1] :]
    assert answer == pipe.processor.decode(ids, skip_special_tokens=True)


def test_the_pipeline_takes_a_vision_configuration(converted_folder):
    ours = pipeline(
        "image-text-to-text",
        str(parity.OFFICIAL),
        model_kwargs={"vision_config": str(SIGLIP)},
        dtype=torch.float32,
    )
    theirs = pipeline("image-text-to-text", str(converted_folder), dtype=torch.float32)
    answers = [pipe(text=chat(), generate_kwargs=SHORT, return_full_text=False) for pipe in (ours, theirs)]
    assert answers[0][0]["generated_text"] == answers[1][0]["generated_text"]
    assert "vision_config" not in ours.processor.tokenizer.init_kwargs


def test_the_command_line_asks_an_official_folder(released):
    folder, written = released
    options = ["--model", folder, "--device", "cpu", "--max-new-tokens", "8", "--block-length", "4", "--json"]
    run = python_process.run(["-m", "transformers_lladav", "ask", PICTURE, "What is this?", *options])
    assert run.returncode == 0, run.stderr[-4000:]
    processor = AutoProcessor.from_pretrained(folder)
    inputs = inputs_of(processor)
    ids = written.generate(**inputs, **SHORT)[0, inputs["input_ids"].shape[1] :]
    assert json.loads(run.stdout)["text"] == processor.decode(ids, skip_special_tokens=True).strip()


FROM_THE_HUB = """
import sys, torch
from transformers_lladav import LladaVConfig, LladaVProcessor
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

picture, vision_config = sys.argv[1:]
content = [{"type": "image", "path": picture}, {"type": "text", "text": "What is this?"}]
found = []
for name, options in (("them/native", {}), ("them/official", {"vision_config": vision_config})):
    processor = AutoProcessor.from_pretrained(name, **options)
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32, **options)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        found.append(model(**inputs, logits_to_keep=8).logits)
    assert model.config._name_or_path == name
    assert len(processor.tokenizer) == 126351
assert torch.equal(*found)

class Plain(LladaVProcessor):
    from_pretrained = classmethod(ProcessorMixin.from_pretrained.__func__)

LladaVProcessor.from_pretrained("them/ours")
Plain.from_pretrained("them/plain")
try:
    LladaVConfig.from_pretrained("them/official")
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def hub(converted_folder, tmp_path_factory):
    """The Hub after everything was loaded from it, and what was printed: online, then offline from the cache."""

    def load(offline):
        environment = os.environ | server.environment(home) | {"HF_HUB_OFFLINE": offline}
        run = python_process.run(["-c", FROM_THE_HUB, PICTURE, SIGLIP], env=environment)
        assert run.returncode == 0, run.stderr[-4000:]
        return run.stdout

    home = tmp_path_factory.mktemp("home")
    with HubServer() as server:
        for name in ("native", "ours", "plain"):
            server.add_repo(f"them/{name}", converted_folder)
        server.add_repo("them/official", parity.OFFICIAL)
        online = load("0")
    return server, online, load("1")


def test_hub_ids_load_online_and_again_offline(hub):
    _, online, offline = hub
    assert "them/official cannot be loaded: config.json has mm_hidden_size=32" in online
    assert offline == online


def test_a_native_hub_id_costs_at_most_one_small_request_more(hub):
    server, _, _ = hub
    assert server.asked("them/plain") > 0
    assert 0 <= server.asked("them/ours") - server.asked("them/plain") <= 1
