"""Under lmms-eval itself answers and scores are those of the model alone, in any batch, on tasks of our own."""

import importlib
import ssl
import sys
from pathlib import Path

import pytest
from PIL import Image

from lmms_tasks import KWARGS, RATED, SETTINGS, write_docs, write_task
from transformers_lladav import asking

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test installs it without its requirements")
from lmms_eval import evaluator
from lmms_eval.api.instance import Instance
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager
from loguru import logger

from transformers_lladav.eval_tasks import append_text
from transformers_lladav.lmms_eval_model import LladaV, LladaVSimple, _part
from transformers_lladav.quantization import is_quantized

SCENE = Path(__file__).parent.parent / "model_cards" / "assets" / "scene.png"
CHOICES = "doc_to_choice: [red, green, blue, yellow]\nmetric_list: [{metric: acc}]\n"


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Tasks in a folder, with the chats and the answers of their questions."""
    folder = tmp_path_factory.mktemp("tasks")
    chats, answers = write_docs(folder, 10)
    write_task(folder, "scenes", RATED + KWARGS)
    write_task(folder, "mmstar", RATED + "generation_kwargs: {image_aspect_ratio: pad}\n")  # a name of the paper's
    return folder, chats, answers


@pytest.fixture(autouse=True)
def restrained(monkeypatch, tmp_path):
    """What lmms-eval changes for the whole process would reach other tests: locks that let everybody in, for one."""
    monkeypatch.setattr(evaluator, "_enable_reentrant_filelocks", lambda: None)
    monkeypatch.setattr(ssl.SSLContext, "_orig_reduce", True, raising=False)
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def log():
    lines = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    yield lines
    logger.remove(sink)


def evaluate(folder, task, model_args="", **options):
    tasks = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    arguments = f"device=cpu,{model_args}".rstrip(",")
    result = evaluator.simple_evaluate("lladav", arguments, tasks=[task], task_manager=tasks, **options)
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return result["results"][task], samples


def said(samples):
    return [sample["filtered_resps"][0] for sample in samples]


def test_lmms_eval_finds_the_model_by_its_entry_point():
    assert MODEL_REGISTRY_V2.get_model_class("lladav") is LladaV
    assert MODEL_REGISTRY_V2.get_model_class("lladav", force_simple=True) is LladaVSimple


def test_answers_are_those_of_the_model_alone_in_any_batch_and_the_score_is_their_count(scenes, assistant, log):
    folder, chats, expected = scenes
    alone = [asking.answer(assistant, chat, max_denoising_steps=None, **SETTINGS).text for chat in chats]
    assert len({len(chat[0]["content"]) for chat in chats}) == 3  # no picture, one, two
    results, samples = evaluate(folder, "scenes", batch_size=4)
    assert said(samples) == alone
    right = [answer == wanted for answer, wanted in zip(alone, expected, strict=True)]
    assert 0 < sum(right) < len(right)
    assert results["right,none"] == sum(right) / len(right)
    assert [sample["right"] for sample in samples] == right
    _, one_by_one = evaluate(folder, "scenes", batch_size=1)
    assert said(one_by_one) == alone
    _, simple = evaluate(folder, "scenes", batch_size=4, force_simple=True)
    assert said(simple) == alone
    line = "scenes: the task's own settings: max_new_tokens=24, stop_strings=['\\n']"
    assert log.count(line) == 3  # once per run


def test_tasks_of_the_paper_get_the_papers_settings_unless_the_user_says_otherwise(scenes, assistant, log):
    folder, chats, _ = scenes
    tagged = [append_text(chat, " /no_think") for chat in chats]
    _, samples = evaluate(folder, "mmstar", batch_size=4)
    assert said(samples) == [asking.answer(assistant, chat, preset="mmstar").text for chat in tagged]
    assert (
        "mmstar: the paper's settings for mmstar: max_new_tokens=2, block_length=2, max_denoising_steps=2, /no_think "
        "after the question" in log
    )
    assert "mmstar: not honoured: image_aspect_ratio='pad'" in log
    settings = "max_new_tokens=16,block_length=8,threshold=0.9"
    _, longer = evaluate(folder, "mmstar", settings, batch_size=4)
    wanted = {"max_new_tokens": 16, "block_length": 8, "threshold": 0.9, "max_denoising_steps": None}
    assert said(longer) == [asking.answer(assistant, chat, **wanted).text for chat in tagged]
    assert said(longer) != said(samples)
    _, own = evaluate(folder, "mmstar", "paper_settings=False", batch_size=4)
    assert said(own) == [asking.answer(assistant, chat).text for chat in chats]


def test_samples_do_not_depend_on_the_batch_and_repetitions_differ(scenes):
    folder, _, _ = scenes
    some = {"repeats": 2, "limit": 4}
    drawn = [
        [
            sample["resps"][0]
            for sample in evaluate(folder, "scenes", "temperature=2.0", batch_size=size, repeats=2, limit=4)[1]
        ]
        for size in (1, 4)
    ]
    assert drawn[0] == drawn[1]
    assert all(len(responses) == 2 for responses in drawn[0])
    assert any(one != two for one, two in drawn[0])
    other = evaluate(folder, "scenes", "temperature=2.0,seed=1", batch_size=4, **some)[1]
    assert [sample["resps"][0] for sample in other] != drawn[0]


def test_likelihoods_choose_the_answer_that_score_chooses(scenes, assistant):
    folder, chats, expected = scenes
    write_task(folder, "choosing", CHOICES, "multiple_choice")
    colours = ["red", "green", "blue", "yellow"]
    results, samples = evaluate(folder, "choosing", batch_size=8, force_simple=True)
    right = 0
    for sample, chat, wanted in zip(samples, chats, expected, strict=True):
        inputs = assistant.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        scores = assistant.model.score(**inputs, answers=colours, tokenizer=assistant.tokenizer)
        losses = [loss for loss, _ in sample["filtered_resps"]]
        assert losses == pytest.approx((-scores.log_likelihoods_per_token).tolist(), abs=1e-6)
        settings = dict.fromkeys(
            ("max_new_tokens", "block_length", "max_denoising_steps"), int(scores.num_tokens.max())
        )
        written = asking.answer(assistant, chat, **settings).text
        assert [greedy for _, greedy in sample["filtered_resps"]] == [colour == written for colour in colours]
        right += wanted in colours and colours[int(scores.log_likelihoods_per_token.argmax())] == wanted
    assert right > 0
    assert results["acc,none"] == right / len(chats)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"max_new_token": 4},
            r"take 'max_new_token'; did you mean 'max_new_tokens'\?$",
        ),
        ({"pretrain": "x"}, r"^model_args: generate\(\) does not take 'pretrain'; did you mean 'pretrained'\?$"),
        ({"retur": 1}, r"^model_args: generate\(\) does not take 'retur'$"),
        ({"num_beams": 2}, r"^model_args: generate\(\) does not take 'num_beams': a denoising loop has no beams$"),
        ({"batch_size": "auto"}, "^batch_size='auto': a batch size is not searched for; give a whole number"),
        ({"max_batch_size": 8}, "^max_batch_size=8: a batch size is not searched for"),
        ({"dtype": "int3"}, "^dtype='int3' is not known; choose one of auto, float32, bfloat16, float16$"),
        ({"preset": "mmmmu"}, "^preset='mmmmu' is not known; choose one of mmmu"),
        ({"threshold": 2}, "threshold=2"),
        ({"stop_strings": "[nothing"}, r"^model_args: \[nothing is not JSON"),
        ({"pretrained": "owner"}, "^owner is neither a folder nor a Hub id such as"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError, OSError), match=message):
        LladaV(device="cpu", **arguments)


def test_settings_that_do_not_fit_are_refused_with_the_task():
    model = LladaV(device="cpu", max_new_tokens=10)
    with pytest.raises(
        ValueError, match=r"^mine: max_new_tokens=10 is not a multiple of block_length=8; pass max_new_tok"
    ):
        model.generate_until([request("mine", [{"type": "text", "text": "How many?"}], model)])


def test_values_of_model_args_are_read():
    model = LladaV(
        device="cpu", dtype="bfloat16", max_frames=3, stop_strings='["\\n"]', top_k="none", block_length=8.0
    )
    assert model.given == {"stop_strings": ["\n"], "top_k": None, "block_length": 8}
    assert str(model.assistant.model.dtype) == "torch.bfloat16"
    assert model.assistant.processor.image_processor.max_video_frames == 3
    model.clean()
    with pytest.raises(RuntimeError, match="freed by clean"):
        model.generate_until([request("mine", [{"type": "text", "text": "How many?"}], model)])


def request(task, content, model, kwargs=None, document=0):
    """A request as lmms-eval makes it of a chat."""
    model.task_dict.setdefault(task, {"test": {}})["test"][document] = content
    arguments = ("", lambda parts: [{"role": "user", "content": parts}], kwargs or {}, document, task, "test")
    return Instance("generate_until", arguments, 0, {"task": task, "doc_id": document, "repeats": 1})


def about_the_scene(question):
    return [{"type": "image", "url": str(SCENE)}, {"type": "text", "text": question}]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "url": "a.wav"}, "the question holds audio, which LLaDA-V does not take"),
        ({"type": "video", "url": "a.mp4", "start_time": 1.0}, "the question is about a part of a video"),
        ({"type": "video", "url": {"url": "a.mp4", "video_end": 2}}, "the question is about a part of a video"),
        ({"type": "image", "url": "missing.png"}, "the picture 'missing.png' is missing"),
        ({"type": "image", "url": None}, "a picture is None, not a path"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_task_and_document(part, message):
    model = LladaV(device="cpu")
    with pytest.raises(ValueError, match=f"^mine, document 0: {message}"):
        model.generate_until([request("mine", [part, {"type": "text", "text": "What is it?"}], model)])


def test_parts_are_taken_as_the_processor_has_them(tmp_path):
    picture = Image.new("RGB", (8, 8))
    picture.save(tmp_path / "1.png")
    assert _part({"type": "image", "url": picture}) == {"type": "image", "image": picture}
    assert _part({"type": "video", "url": str(tmp_path)}) == {"type": "video", "video": [str(tmp_path / "1.png")]}
    assert _part({"type": "video", "url": [picture, picture]}) == {"type": "video", "video": [picture, picture]}


def test_requests_keep_their_order_whatever_their_settings():
    model = LladaV(device="cpu", batch_size=2)
    questions = ["How many shapes are there?", "Describe the picture.", "What is at the top left?"]
    asked = [(task, length, question) for question in questions for task, length in (("a", 8), ("b", 16), ("a", 16))]
    requests = [
        request(task, about_the_scene(question), model, {"max_new_tokens": length}, number)
        for number, (task, length, question) in enumerate(asked)
    ]
    together = [result.text for result in model.generate_until(requests)]
    assert together == [model.generate_until([one])[0].text for one in requests]
    assert len(set(together)) >= len(questions)


def test_a_task_that_names_a_length_beyond_all_positions_is_answered(log):
    model = LladaV(device="cpu", quantization="nf4")
    assert is_quantized(model.assistant.model)
    parts = about_the_scene("How many shapes are there?")
    (long,) = model.generate_until([request("mine", parts, model, {"max_new_tokens": 49152})])
    (short,) = model.generate_until([request("mine", parts, model, {"max_new_tokens": 512})])
    assert long.text == short.text != ""
    assert "mine: not honoured: max_new_tokens=49152: a canvas has at most 512, half of the model's positions" in log


def test_what_is_not_supported_says_what_is():
    model = LladaV(device="cpu")
    with pytest.raises(NotImplementedError, match="run the task with --force_simple"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="mmsearch and ovobench only"):
        model.generate_until_multi_round([])


def test_without_lmms_eval_the_import_says_what_to_install(monkeypatch):
    name = "transformers_lladav.lmms_eval_model"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lmms_eval.api.instance", None)
    with pytest.raises(ImportError, match=r"pip install 'transformers_lladav\[lmms-eval\]'$"):
        importlib.import_module(name)
