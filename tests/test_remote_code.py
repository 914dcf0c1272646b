"""A converted folder without the package gives the same classes, logits and answers by its own code.

Run as a script, this file is the other side: a process in which `transformers_lladav` cannot be imported. It loads
folders with `trust_remote_code=True` and writes down what it got, and the tests compare that with the package: the
official tiny model for logits, and the bundled checkpoint for answers that mean something.
"""

import importlib.abc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from itertools import chain
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
WRITTEN = {"max_new_tokens": 24, "threshold": 0.9}


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


class Listener:
    """A streamer as transformers knows them: it is handed whole pieces and, by a diffusion model, drafts."""

    def __init__(self):
        self.pieces, self.drafts, self.ended = [], [], False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def put_draft(self, value, **others):
        self.drafts.append(value.flatten().tolist())

    def end(self):
        self.ended = True


def ask(question, *pictures):
    """A chat of one question."""
    content = [*({"type": "image", "image": str(path)} for path in pictures), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def text_of(outputs):
    return [output["generated_text"] for output in outputs]


def pipeline_uses(pipe, pictures):
    """What people do with a pipeline, by name; `pictures` are two files. Settings are new in every call, because some
    versions of transformers write into those they are given."""
    first, second = map(str, pictures)
    caption, count = "Describe the picture.", "How many shapes are there?"

    def settings(**changes):
        chosen = {name: value for name, value in {**WRITTEN, **changes}.items() if value is not None}
        return {"generate_kwargs": chosen, "return_full_text": False}

    chat, begun = ask(caption, first), {"role": "assistant", "content": [{"type": "text", "text": "a green"}]}
    both = [[first], [second]], ["<image>" + caption, "<image>" + count]
    turns = [*ask(count, first), {"role": "assistant", "content": [{"type": "text", "text": "three"}]}, *ask(caption)]
    return {
        "chat": lambda: text_of(pipe(chat, **settings())),
        "chat, whole": lambda: text_of(pipe(chat, generate_kwargs=dict(WRITTEN))),
        "chats in a batch": lambda: list(map(text_of, pipe([chat, ask(count, second)], batch_size=2, **settings()))),
        "string": lambda: text_of(pipe(images=first, text="<image>" + caption, **settings())),
        "strings": lambda: text_of(pipe(images=both[0], text=both[1], **settings())),
        "two pictures": lambda: text_of(pipe(ask("What changed?", first, second), **settings())),
        "string, two pictures": lambda: text_of(
            pipe(images=[first, second], text="<image><image>What changed?", **settings())
        ),
        "turns": lambda: text_of(pipe(turns, **settings())),
        "text alone": lambda: text_of(pipe(ask("Which word comes after three?"), **settings())),
        "string alone": lambda: text_of(pipe(text="Which word comes after three?", **settings())),
        "begun": lambda: text_of(pipe([*chat, begun], **settings())),
        "begun, whole": lambda: pipe([*chat, begun], generate_kwargs=dict(WRITTEN))[0]["generated_text"][-1],
        "steps": lambda: text_of(pipe(chat, **settings(threshold=None, max_denoising_steps=6))),
        "official names": lambda: text_of(
            pipe(chat, **settings(threshold=None, max_new_tokens=None, gen_length=24, block_length=8, steps=6))
        ),
        "preset": lambda: text_of(pipe(chat, **settings(threshold=None, preset="balanced"))),
        "static": lambda: text_of(pipe(chat, **settings(cache_implementation="static", disable_compile=True))),
        "stop": lambda: text_of(pipe(chat, stop_sequence=" at", **settings())),
        "no beams": lambda: refusal(lambda: pipe(chat, generate_kwargs={"num_beams": 2})),
    }


def refusal(call):
    """The message of the error that a call ends with."""
    try:
        call()
    except TypeError as error:
        return str(error)
    return None


def streamed(pipe, picture):
    """An answer with what a streamer was given on the way: of ours by put and put_draft, of transformers as text."""
    from transformers import TextDiffusionStreamer, TextIteratorStreamer

    def written(streamer):
        settings = {"generate_kwargs": {**WRITTEN, "streamer": streamer}, "return_full_text": False}
        return text_of(pipe(ask("Describe the picture.", picture), **settings))

    listener, texts = Listener(), TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    found = {
        "answer": written(listener),
        "drafts": listener.drafts,
        "pieces": listener.pieces,
        "ended": listener.ended,
    }
    with redirect_stdout(io.StringIO()) as screen:
        written(TextDiffusionStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True))
    return {**found, "texts": [written(texts), "".join(texts)], "screen": screen.getvalue()}


def beside_answers(model, processor, picture):
    """What only the model's own methods give: an answer with holes, and likelihoods."""
    begun = [
        *ask("Describe the picture.", picture),
        {"role": "assistant", "content": "a [MASK:1] [MASK:1] at the left"},
    ]
    filled = model.generate(**processor.infilling_inputs(begun), infill=True)
    inputs = processor.apply_chat_template(
        ask("How many shapes are there?", picture),
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    rated = model.score(**inputs, answers=["five", "two"], tokenizer=processor.tokenizer)
    return {"filled": processor.decode(filled[0]), "likelihoods": rated.log_likelihoods.tolist()}


def adapted(folder, adapter, picture, remote):
    """The answer with an adapter, loaded in each way that people have."""
    import peft
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    options = {"trust_remote_code": remote, "dtype": torch.float32}
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=remote)

    def base():
        return AutoModelForImageTextToText.from_pretrained(folder, **options)

    def loaded():
        model = base()
        model.load_adapter(str(adapter))
        return model

    models = {
        "PeftModel": peft.PeftModel.from_pretrained(base(), str(adapter)),
        "load_adapter": loaded(),
        "AutoModel": AutoModelForImageTextToText.from_pretrained(adapter, **options),
    }
    pipes = {name: pipeline("image-text-to-text", model=model, processor=processor) for name, model in models.items()}
    pipes["folder"] = pipeline("image-text-to-text", model=str(adapter), processor=processor, **options)
    settings = {"generate_kwargs": WRITTEN, "return_full_text": False}
    chat = ask("Describe the picture.", picture)
    return {
        name: text_of(pipe(chat, **{**settings, "generate_kwargs": dict(WRITTEN)})) for name, pipe in pipes.items()
    }


def saved_again(pipe, picture, remote):
    """The answer of a pipeline that was saved and loaded: transformers' own method leaves the processor out."""
    from transformers import pipeline

    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        pipe.processor.save_pretrained(folder)
        again = pipeline("image-text-to-text", model=folder, trust_remote_code=remote, dtype=torch.float32)
    chat = ask("Describe the picture.", picture)
    return text_of(again(chat, generate_kwargs=dict(WRITTEN), return_full_text=False))


def image_processors():
    """transformers 5.17 has no AutoImageProcessor where torchvision is not installed."""
    import transformers

    return [] if hasattr(transformers.AutoImageProcessor, "_backends") else ["AutoImageProcessor"]


def uses(folder, adapter, pictures, remote):
    """Everything that people do with a checkpoint, by the code of the folder or by the package."""
    from transformers import pipeline

    pipe = pipeline("image-text-to-text", model=str(folder), trust_remote_code=remote, dtype=torch.float32)
    return {
        "module": type(pipe.model).__module__.split(".")[0],
        "pipeline": {name: use() for name, use in pipeline_uses(pipe, pictures).items()},
        "streamed": streamed(pipe, pictures[0]),
        "beside": beside_answers(pipe.model, pipe.processor, pictures[0]),
        "adapted": adapted(folder, adapter, pictures[0], remote),
        "saved": saved_again(pipe, pictures[0], remote),
    }


def run_without_package(folder, results, speaking):
    """The other side.

    `folder` is a converted checkpoint, `results` an empty folder; in `speaking` lie a published checkpoint, an adapter
    of it and two pictures.
    """
    sys.meta_path.insert(0, PackageBlocker())
    torch.set_num_threads(1)
    import transformers

    def load(name, where=folder, **options):
        return getattr(transformers, name).from_pretrained(where, trust_remote_code=True, **options)

    report = {"classes": {name: type(load(name)).__name__ for name in ("AutoConfig", *image_processors())}}
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
    report["uses"] = uses(*parts_of(speaking), remote=True)
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
def speaking(bundled, tmp_path_factory):
    """The bundled checkpoint as it is published, an adapter of it, and two pictures to ask about."""
    from test_adapters import save, train
    from transformers_lladav import LladaVForMaskedDiffusion
    from transformers_lladav.publishing import save_checkpoint
    from transformers_lladav.shape_scenes import make_scene, render_scene

    folder = tmp_path_factory.mktemp("speaking")
    save_checkpoint(bundled.model, bundled.processor, folder / "model")
    torch.manual_seed(0)  # adapters begin with weights that are drawn
    base = LladaVForMaskedDiffusion.from_pretrained(folder / "model", dtype=torch.float32)
    save(train(base, seed=1, size=0.2), folder / "adapter")
    for number in range(2):
        render_scene(make_scene("demo", number), 96).save(folder / f"{number}.png")
    return folder


def parts_of(speaking):
    return speaking / "model", speaking / "adapter", [speaking / "0.png", speaking / "1.png"]


@pytest.fixture(scope="session")
def results(converted_folder, speaking, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    cache = tmp_path_factory.mktemp("modules")
    command = [sys.executable, "-I", __file__, str(converted_folder), str(folder), str(speaking)]
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
        **dict.fromkeys(image_processors(), "LladaVImageProcessor"),
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


@pytest.fixture(scope="session")
def here(speaking):
    """The same uses by the package, as they come out of a file."""
    return json.loads(json.dumps(uses(*parts_of(speaking), remote=False)))


def test_uses_are_those_of_two_implementations(report, here):
    assert (report["uses"]["module"], here["module"]) == ("transformers_modules", "transformers_lladav")


PIPELINE_USES = list(pipeline_uses(None, ["", ""]))


@pytest.mark.parametrize("use", PIPELINE_USES)
def test_a_pipeline_answers_as_with_the_package(use, report, here):
    assert report["uses"]["pipeline"][use] == here["pipeline"][use]


def test_answers_of_the_pipeline_are_what_was_asked_for(report):
    answers = report["uses"]["pipeline"]
    (caption,) = answers["chat"]
    assert caption.startswith("a green cross at the top left, a pink triangle at the")  # of the scene "demo" 0
    assert answers["chat, whole"][0][-1] == {"role": "assistant", "content": caption}
    assert answers["chats in a batch"] == [[caption], ["five"]]
    assert answers["begun, whole"]["content"][-1]["text"] == "a green" + answers["begun"][0]
    assert answers["stop"] == ["a green cross"]
    assert "a denoising loop has no beams" in answers["no beams"]
    assert answers["official names"] != answers["chat"]
    assert answers["two pictures"] == ["the orange triangle was removed"]


def test_streamers_see_what_they_see_with_the_package(report, here):
    assert report["uses"]["streamed"] == here["streamed"]


def test_streamers_see_the_answer_emerge(report, speaking, bundled):
    found, mask = report["uses"]["streamed"], bundled.model.config.mask_token_id
    (caption,) = found["answer"]
    prompt, *blocks = found["pieces"]
    assert found["ended"]
    assert [len(block) for block in blocks] == [8, 8, 8]
    assert prompt.count(bundled.model.config.image_token_id) == 6 * 6 + 1  # patches of 16 pixels, and a newline
    assert bundled.tokenizer.decode([*chain(*blocks)], skip_special_tokens=True) == caption
    assert len(found["drafts"]) > len(blocks)
    assert any(mask in draft for draft in found["drafts"])
    assert found["texts"] == [[caption], caption]
    draft = r"\x1b7\x1b\[33m(.*?)\x1b\[0m\x1b8\x1b\[J"  # written, and taken off the screen again
    assert len(re.findall(draft, found["screen"], re.DOTALL)) == len(found["drafts"])
    assert re.sub(draft, "", found["screen"], flags=re.DOTALL).strip() == caption


def test_holes_and_likelihoods_are_those_of_the_package(report, here):
    found = report["uses"]["beside"]
    assert found == here["beside"]
    assert found["filled"].endswith("a green cross at the left<|eot_id|>")
    right, wrong = found["likelihoods"]
    assert wrong < right < 0


@pytest.mark.parametrize("way", ["PeftModel", "load_adapter", "AutoModel", "folder"])
def test_adapters_load_as_with_the_package(way, report, here):
    found = report["uses"]["adapted"]
    assert found[way] == here["adapted"][way] == found["PeftModel"]
    assert found[way] != report["uses"]["pipeline"]["chat"]


def test_a_pipeline_that_was_saved_answers_as_before(report, here):
    assert report["uses"]["saved"] == here["saved"] == report["uses"]["pipeline"]["chat"]


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
    run_without_package(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
