"""Importing the package is cheap, and in whatever order things are imported the Auto classes know LLaDA-V."""

import subprocess
import sys

import pytest

import python_process

CHECK = """
import json, tempfile
from pathlib import Path

import transformers_lladav as ours
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

folder = ours.BUNDLED_CHECKPOINT
config = AutoConfig.from_pretrained(folder)
assert type(config) is ours.LladaVConfig
assert type(AutoModelForImageTextToText.from_pretrained(folder)) is ours.LladaVForMaskedDiffusion
assert type(AutoModel.from_config(config)) is ours.LladaVForMaskedDiffusion
assert type(AutoModel.from_config(config.text_config)) is ours.LladaVTextModel
processor = AutoProcessor.from_pretrained(folder)
assert type(processor) is ours.LladaVProcessor
assert type(processor.image_processor) is ours.LladaVImageProcessor

sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
official = {"model_type": "llava_llada", **dict.fromkeys(sizes, 126464), "num_attention_heads": 1}
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "config.json").write_text(json.dumps(official))
    config = AutoConfig.from_pretrained(folder)
assert type(config) is ours.LladaVConfig
assert config.text_config.vocab_size == 126464
"""


def python(code):
    return python_process.run(["-c", code], loaded=python_process.TORCH)


def test_the_import_loads_neither_torch_nor_transformers():
    code = "import sys, transformers_lladav; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "set()", run.stdout + run.stderr


@pytest.mark.parametrize(
    "first",
    [
        "import transformers_lladav",
        "from transformers import AutoModel, AutoProcessor",
        "from transformers_lladav import LladaVForMaskedDiffusion",
        "import transformers_lladav.modeling_lladav",
        "import transformers_lladav.processing_lladav",
        "import transformers_lladav.configuration_lladav",
        "import transformers_lladav; from transformers import pipeline",
    ],
)
def test_the_auto_classes_know_us_in_any_order(first):
    run = python(first + CHECK)
    assert run.returncode == 0, run.stderr


def test_public_names_are_there_and_others_are_not():
    import transformers_lladav

    assert set(transformers_lladav.__all__) <= set(dir(transformers_lladav))
    for name in transformers_lladav.__all__:
        assert getattr(transformers_lladav, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'LladaVNothing'"):
        _ = transformers_lladav.LladaVNothing


def test_registering_again_changes_nothing():
    from transformers_lladav.registration import _Waiter, register_when_loaded

    before = list(sys.meta_path)
    register_when_loaded()
    assert sys.meta_path == before
    assert sum(isinstance(finder, _Waiter) for finder in sys.meta_path) == 1
