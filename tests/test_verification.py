"""Each thing that can be wrong in a checkpoint folder is told as one error or warning, and nothing is executed.

Broken weight files stand in test_corruptions.py.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import parity
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVForMaskedDiffusion
from transformers_lladav.checkpoint_keys_lladav import native_key
from transformers_lladav.publishing import save_checkpoint
from transformers_lladav.verification import digest, verify

NEWLINE, HEAD, EMBEDDING = "model.image_newline", "lm_head.weight", "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The bundled checkpoint, made to load without the package; weights of 2 MB. Do not change it."""
    from transformers_lladav import LladaVProcessor

    folder = tmp_path_factory.mktemp("small") / "lladav"
    model = LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT)
    save_checkpoint(model, LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT), folder)
    return folder


@pytest.fixture
def folder(small, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(small, tmp_path / "lladav"))


def change_json(path, **fields):
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def found(folder, level):
    return [(finding.topic, finding.text) for finding in verify(folder).findings if finding.level == level]


def the_error(folder):
    errors = found(folder, "error")
    assert len(errors) == 1, errors
    return errors[0]


def the_warning(folder):
    report = verify(folder)
    assert report.errors == []
    assert len(report.warnings) == 1, report.warnings
    return report.warnings[0].topic, report.warnings[0].text


def test_a_good_folder_passes_everything(small):
    report = verify(small)
    assert report.layout == "native"
    assert {finding.level for finding in report.findings} == {"ok"}
    assert [finding.topic for finding in report.findings] == [
        "config", "weights", "values", "processor", "tokenizer", "chat template", "generation", "auto_map", "code",
    ]  # fmt: skip


def test_digests_are_of_the_bytes_and_do_not_depend_on_the_layout(converted_folder):
    siglip = json.loads((parity.FOLDER / "checkpoint-siglip" / "config.json").read_text())
    native, official = verify(converted_folder), verify(parity.OFFICIAL, siglip)
    assert (native.layout, official.layout) == ("native", "official")
    assert official.errors == []
    assert native.digests == official.digests
    stored = {n: t for file in parity.OFFICIAL.glob("*.safetensors") for n, t in load_file(file).items()}
    for name, tensor in stored.items():
        bytes_of = tensor.view(torch.int16).numpy().astype("<i2").tobytes()
        assert native.digests[native_key(name)] == hashlib.sha256(bytes_of).hexdigest()


def test_a_digest_of_known_bytes():
    # float32 1.0 is 00 00 80 3f, little-endian
    assert digest(torch.tensor([[1.0], [0.0]])) == hashlib.sha256(bytes.fromhex("0000803f00000000")).hexdigest()
    transposed = torch.arange(6.0).view(2, 3).T
    assert digest(transposed) == digest(torch.tensor([[0.0, 3], [1, 4], [2, 5]]))


def test_the_bundled_checkpoint_needs_the_package_and_says_so():
    report = verify(BUNDLED_CHECKPOINT)
    assert report.errors == []
    assert [finding.topic for finding in report.warnings] == ["auto_map", "code"]


def test_progress_ends_at_all_bytes(small):
    told = []
    verify(small, progress=lambda *figures: told.append(figures))
    sizes = sum(tensor.nbytes for tensor in load_file(small / "model.safetensors").values())
    assert told[-1] == (sizes, sizes)
    assert len(told) == 113


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        verify(tmp_path / "none")


def test_an_empty_folder_is_wrong(tmp_path):
    topics = {topic for topic, _ in found(tmp_path, "error")}
    assert topics == {"config", "weights"}


def test_another_model(folder):
    change_json(folder / "config.json", model_type="llava")
    topic, text = the_error(folder)
    assert (topic, text) == ("config", "config.json has model_type='llava'; LLaDA-V has 'lladav'")


def test_an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert the_error(folder) == ("config", "the folder holds an adapter, not a model")


def test_a_config_whose_values_do_not_fit(folder):
    change_json(folder / "config.json", mask_token_id=10**6)
    topic, text = the_error(folder)
    assert topic == "config"
    assert "mask_token_id=1000000 is not in the vocabulary" in text


def test_the_stated_type_is_compared_with_the_tensors(folder):
    change_json(folder / "config.json", dtype="float16")
    assert the_warning(folder) == ("weights", "config.json states float16, but the tensors are 113 bfloat16")


def test_mixed_types(folder):
    change_tensors(folder, lambda tensors: tensors.update({NEWLINE: tensors[NEWLINE].float()}))
    topic, text = the_warning(folder)
    assert topic == "weights"
    assert "(112 bfloat16, 1 float32)" in text


def test_a_matrix_of_zeros(folder):
    name = "model.multi_modal_projector.linear_1.weight"
    change_tensors(folder, lambda tensors: tensors[name].zero_())
    assert the_warning(folder) == ("values", f"{name} in model.safetensors is zero everywhere")


def test_a_head_that_equals_the_embedding(folder):
    change_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert "head and embedding are equal, but config.json does not tie them" in the_warning(folder)[1]
    change_json(folder / "config.json", tie_word_embeddings=True)
    assert found(folder, "error") == found(folder, "warning") == []
    change_tensors(folder, lambda tensors: tensors.pop(HEAD))
    assert found(folder, "error") == found(folder, "warning") == []


def test_a_tied_config_beside_an_untied_head(folder):
    change_json(folder / "config.json", tie_word_embeddings=True)
    topic, text = the_error(folder)
    assert topic == "weights"
    assert "holds another head, which would be lost" in text


def test_a_vision_layer_that_should_have_been_dropped(folder):
    layers = json.loads((folder / "config.json").read_text())["vision_config"]["num_hidden_layers"]
    name = f"model.vision_tower.encoder.layers.{layers}.layer_norm1.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(4, dtype=torch.bfloat16)}))
    assert the_error(folder) == ("weights", f"unexpected tensor: {name} in model.safetensors, shape [4]")


@pytest.mark.parametrize(("name", "value"), [("patch_size", 7), ("max_tiles", 9), ("newline_position", "frame")])
def test_an_image_processor_that_cuts_otherwise(folder, name, value):
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"][name] = value
    path.write_text(json.dumps(content))
    topic, text = the_error(folder)
    assert topic == "processor"
    assert f"the image processor has {name}={value}, config.json " in text


def test_a_processor_that_does_not_load(folder):
    (folder / "tokenizer.json").write_text("{")
    topic, text = the_error(folder)
    assert topic == "processor"
    assert text.startswith("it cannot be loaded: ")


@pytest.mark.parametrize("name", ["mask_token_id", "image_token_id"])
def test_ids_that_are_not_the_tokenizers(folder, name):
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", **{name: config[name] - 1})
    errors = found(folder, "error")
    assert ("tokenizer", errors[0][1]) == errors[0]
    assert f"as {config[name]}, config.json as {config[name] - 1}" in errors[0][1]


@pytest.mark.parametrize("number", [-5, 2**40, [560, -1]])
def test_an_end_that_is_no_token(folder, number):
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", text_config={**config["text_config"], "eos_token_id": number})
    end = number[1] if isinstance(number, list) else number
    wanted = f"config.json has eos_token_id={end}, which is no token of the tokenizer"
    assert the_error(folder) == ("tokenizer", wanted)


def test_answers_of_tokens_that_do_not_exist(folder):
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", output_vocab_size=config["text_config"]["vocab_size"])
    topic, text = the_error(folder)
    assert topic == "tokenizer"
    assert f"answers may hold {config['text_config']['vocab_size']} tokens (output_vocab_size)" in text


def test_a_tokenizer_larger_than_the_embedding(folder):
    rows = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    last = max(content["added_tokens"], key=lambda token: token["id"])
    more = [{**last, "id": number, "content": f"<more {number}>"} for number in range(last["id"] + 1, rows + 1)]
    path.write_text(json.dumps(content | {"added_tokens": content["added_tokens"] + more}))
    assert the_error(folder) == ("tokenizer", f"the tokenizer has id {rows}, the embedding only {rows} rows")


def test_a_changed_template_is_a_warning_and_a_broken_one_an_error(folder):
    template = folder / "chat_template.jinja"
    good = template.read_text()
    template.write_text(good.replace("| trim", ""))
    assert the_warning(folder)[0] == "chat template"
    template.write_text(good + "{{ raise_exception('no') }}")
    topic, text = the_error(folder)
    assert (topic, text) == ("chat template", "it fails on an ordinary chat: no")


def test_generation_settings(folder):
    path = folder / "generation_config.json"
    mask = json.loads(path.read_text())["mask_token_id"]
    change_json(path, mask_token_id=mask + 1)
    wanted = f"generation_config.json has mask_token_id={mask + 1}, config.json {mask}"
    assert the_error(folder) == ("generation", wanted)
    change_json(path, mask_token_id=mask, num_beams=4)
    assert "num_beams" in the_error(folder)[1]
    path.unlink()
    assert the_warning(folder)[0] == "generation"


def test_a_map_to_other_code_is_an_error(folder):
    change_json(folder / "config.json", auto_map={"AutoModel": "evil.Model"})
    topic, text = the_error(folder)
    assert topic == "auto_map"
    assert "auto_map of config.json decides what code runs; it is {'AutoModel': 'evil.Model'}, not" in text


def test_a_missing_map(folder):
    change_json(folder / "config.json", auto_map=None)
    topic, text = the_warning(folder)
    assert topic == "auto_map"
    assert text.startswith("config.json without one")


def test_changed_code_is_an_error(folder):
    with (folder / "modeling_lladav.py").open("a") as file:
        file.write("import os\n")
    topic, text = the_error(folder)
    assert topic == "code"
    assert text.startswith("modeling_lladav.py: not the package's, and it runs with trust_remote_code=True")


def test_absent_and_foreign_code(folder):
    (folder / "denoising_lladav.py").unlink()
    (folder / "setup.py").write_text("")
    report = verify(folder)
    assert report.errors == []
    assert [finding.text for finding in report.warnings] == [
        "without denoising_lladav.py: the folder needs the package to load",
        "setup.py is not of this package",
    ]


def test_nothing_in_the_folder_is_executed(folder):
    (folder / "modeling_lladav.py").write_text("raise SystemExit('executed')")
    (folder / "processing_lladav.py").write_text("raise SystemExit('executed')")
    topic, text = the_error(folder)
    assert topic == "code"
    assert text.startswith("modeling_lladav.py, processing_lladav.py: not the package's")


def test_an_official_folder_with_another_tokenizer(tmp_path):
    official = Path(shutil.copytree(parity.OFFICIAL, tmp_path / "official"))
    path = official / "tokenizer.json"
    path.write_text(path.read_text().replace("<|mdm_mask|>", "<|was_mask|>"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (official / name).unlink()
    siglip = json.loads((parity.FOLDER / "checkpoint-siglip" / "config.json").read_text())
    errors = verify(official, siglip).errors
    assert [finding.topic for finding in errors] == ["tokenizer"]
    assert "the tokenizer has <|mdm_mask|> as None, not as 126336" in errors[0].text
