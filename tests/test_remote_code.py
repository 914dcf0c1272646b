"""A converted folder without the package: its own code gives the same classes, logits and answers.

Run as a script, this file is the other side: a process in which `transformers_lladav` cannot be imported. It loads the
folder with `trust_remote_code=True`, writes what it got into a folder, and the tests compare that with the package.
"""

import importlib.abc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

MODEL_CLASSES = (
    "AutoModel",
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultimodalLM",
)
PICTURES = Path(__file__).parent / "fixtures" / "parity" / "images"
SHORT = {"max_new_tokens": 8, "block_length": 4, "max_denoising_steps": 8}


class PackageBlocker(importlib.abc.MetaPathFinder):
    """Makes `import transformers_lladav` fail, however it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_lladav":
            raise ImportError(f"{name} is blocked")


def chats():
    """One chat about text, two about pictures of different shapes."""
    picture = [str(PICTURES / name) for name in ("a5_tiny_gray.png", "a4_panorama.jpg")]
    return [
        [{"role": "user", "content": [{"type": "text", "text": "What is a picture?"}]}],
        *(
            [{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": question}]}]
            for path, question in zip(picture, ["What is this?", "Which animal is shown here?"], strict=True)
        ),
    ]


def outcome(model, processor):
    """Logits and generated ids of the text chat and of the first picture chat."""
    found = {}
    for name, chat in zip(("text", "picture"), chats(), strict=False):
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            found[f"{name}/logits"] = model(**inputs, logits_to_keep=8).logits
        found[f"{name}/generated"] = model.generate(**inputs, **SHORT)
    return found


def pipeline_answers(folder):
    """The answers of a pipeline: one chat alone, then two in a batch of two."""
    from transformers import pipeline

    pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True, dtype=torch.float32)
    settings = {"generate_kwargs": SHORT, "return_full_text": False}
    _, first, second = chats()
    return {
        "model": type(pipe.model).__name__,
        "full": pipe(text=first, generate_kwargs=SHORT)[0]["generated_text"][-1],
        "alone": [pipe(text=chat, **settings)[0]["generated_text"] for chat in (first, second)],
        "batch": [answer[0]["generated_text"] for answer in pipe(text=[first, second], batch_size=2, **settings)],
    }


def run_without_package(folder, results):
    """The other side; `folder` is a converted checkpoint, `results` an empty folder."""
    sys.meta_path.insert(0, PackageBlocker())
    torch.set_num_threads(1)
    import transformers

    def load(name, where=folder, **options):
        return getattr(transformers, name).from_pretrained(where, trust_remote_code=True, **options)

    report = {"classes": {name: type(load(name)).__name__ for name in ("AutoConfig", "AutoImageProcessor")}}
    for name in MODEL_CLASSES:
        model, info = load(name, output_loading_info=True)
        report["classes"][name] = type(model).__name__
        assert not any(info.values()), info
    processor = load("AutoProcessor")
    report["classes"]["AutoProcessor"] = type(processor).__name__
    report["modules"] = sorted({type(part).__module__.split(".")[0] for part in (model, model.config, processor)})
    report["generation"] = [type(model.generation_config).__name__, model.can_generate()]
    save_file(outcome(model, processor), results / "outcome.safetensors")
    report["pipeline"] = pipeline_answers(folder)
    model.save_pretrained(results / "again")
    processor.save_pretrained(results / "again")
    again, info = load("AutoModel", results / "again", output_loading_info=True)
    assert not any(info.values()), info
    reloaded = outcome(again, load("AutoProcessor", results / "again"))
    save_file(reloaded, results / "again.safetensors")
    try:
        import transformers_lladav  # noqa: F401
    except ImportError as error:
        report["blocked"] = str(error)
    report["package modules"] = [name for name in sys.modules if name.split(".")[0] == "transformers_lladav"]
    (results / "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="session")
def results(converted_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    cache = tmp_path_factory.mktemp("modules")
    command = [sys.executable, "-I", __file__, str(converted_folder), str(folder)]
    environment = os.environ | {"HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def report(results):
    return json.loads((results / "report.json").read_text())


@pytest.fixture(scope="session")
def expected(converted_folder):
    """What the package makes of the same folder and chats."""
    from transformers_lladav import LladaVForMaskedDiffusion, LladaVProcessor

    model = LladaVForMaskedDiffusion.from_pretrained(converted_folder)
    return outcome(model, LladaVProcessor.from_pretrained(converted_folder))


def test_the_package_was_out_of_reach(report):
    assert report["blocked"] == "transformers_lladav is blocked"
    assert report["package modules"] == []
    assert report["modules"] == ["transformers_modules"]


def test_auto_classes_find_ours(report):
    assert report["classes"] == {
        "AutoConfig": "LladaVConfig",
        "AutoImageProcessor": "LladaVImageProcessor",
        "AutoProcessor": "LladaVProcessor",
        **dict.fromkeys(MODEL_CLASSES, "LladaVForMaskedDiffusion"),
    }
    assert report["generation"] == ["LladaVGenerationConfig", True]


@pytest.mark.parametrize("kind", ["text/logits", "picture/logits", "text/generated", "picture/generated"])
def test_results_are_those_of_the_package(results, expected, kind):
    remote = load_file(results / "outcome.safetensors")[kind]
    assert remote.shape == expected[kind].shape
    assert torch.equal(remote, expected[kind])


def test_the_pipeline_answers(report):
    answers = report["pipeline"]
    assert answers["model"] == "LladaVForMaskedDiffusion"
    assert answers["full"] == {"role": "assistant", "content": answers["alone"][0]}
    assert len(answers["alone"][0]) > 0
    assert answers["batch"] == answers["alone"]


def test_the_pipeline_says_what_the_model_says(report, converted_folder):
    from transformers_lladav import LladaVForMaskedDiffusion, LladaVProcessor

    processor = LladaVProcessor.from_pretrained(converted_folder)
    model = LladaVForMaskedDiffusion.from_pretrained(converted_folder, dtype=torch.float32)
    inputs = processor.apply_chat_template(
        chats()[1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**inputs, **SHORT)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer, skip_special_tokens=True) == report["pipeline"]["alone"][0]


def test_saving_again_keeps_the_way_back(results, converted_folder):
    again = results / "again"
    for name, maps in (
        ("config.json", ["auto_map"]),
        ("processor_config.json", ["auto_map"]),
        ("processor_config.json", ["image_processor", "auto_map"]),
        ("tokenizer_config.json", ["auto_map"]),
    ):
        before, after = (json.loads((folder / name).read_text()) for folder in (converted_folder, again))
        for key in maps:
            before, after = before[key], after[key]
        assert after == before
    code = {path.name: path.read_bytes() for path in converted_folder.glob("*.py")}
    assert {path.name: path.read_bytes() for path in again.glob("*.py")} == code
    first, second = load_file(results / "outcome.safetensors"), load_file(results / "again.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_copied_module_is_flat(converted_folder):
    from transformers.dynamic_module_utils import get_imports, get_relative_imports

    from test_layout import SHIPPED_THIRD_PARTY

    shipped = {path.stem for path in converted_folder.glob("*.py")}
    for path in converted_folder.glob("*.py"):
        assert set(get_relative_imports(path)) <= shipped, path.name
        roots = {name for name in get_imports(path) if name not in sys.stdlib_module_names}
        assert roots <= SHIPPED_THIRD_PARTY, path.name


if __name__ == "__main__":
    run_without_package(sys.argv[1], Path(sys.argv[2]))
