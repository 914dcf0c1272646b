"""LLaDA-V as a model of lmms-eval, by both of its interfaces.

lmms-eval --model lladav --model_args pretrained=LLaDA-V-hf --tasks mmmu_val --batch_size 8
"""

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from inspect import signature
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import asking
from .eval_asking import Asking, resolve_generation, seed_of
from .eval_tasks import append_text
from .generation_configuration_lladav import explain_unknown, resolve_aliases
from .lmms_eval_settings import LENGTHS, SETTINGS, TaskSettings, settings_of_task
from .media import MediaFolder, check_media, load_videos
from .predicting import answer_in_batches
from .presets_lladav import find_preset
from .processes import Processes
from .prompt_view import PromptViewer
from .record_files import PICTURE_SUFFIXES, RecordError
from .sources import check_source

try:
    from lmms_eval.api.instance import GenerationResult, Instance
    from lmms_eval.api.model import lmms
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config
    from loguru import logger
except ImportError as error:
    raise ImportError(
        f"the model for lmms-eval needs lmms-eval ({error}): pip install 'transformers_lladav[lmms-eval]'"
    ) from error

Chat = list[dict[str, Any]]
BATCHES_OF_A_WINDOW = 16  # pictures of so many batches are in memory at once

# What benchmarks name is opened wherever it lies: a benchmark is a program that somebody chose to run.
_MEDIA = MediaFolder(Path(), allow_outside=True, allow_urls=True)


@cache
def _task_index(include_path: str | None) -> dict[str, Any]:
    """What lmms-eval's tasks are called and where they are written down, in thousands of files."""
    return TaskManager(include_path=include_path).task_index


def find_tasks(names: Sequence[str], include_path: str | None = None) -> dict[str, dict[str, Any] | str]:
    """Look tasks up in the installed lmms-eval; nothing is downloaded.

    Args:
        names: of tasks.
        include_path: folder of further tasks.

    Returns:
        The configuration of each task, or in words why it cannot be run.
    """
    logger.disable("lmms_eval")  # it reports every file of its own that holds no task
    try:
        index = _task_index(include_path)
        found: dict[str, dict[str, Any] | str] = {}
        for name in names:
            if name not in index:
                found[name] = f"lmms-eval has no task {name!r}"
                continue
            try:
                found[name] = load_yaml_config(index[name]["yaml_path"], mode="full")
            except ImportError as error:
                found[name] = f"the task {name!r} needs a package: {error}"
            except Exception as error:  # a task is a program, which may want keys and files before it says anything
                found[name] = f"the task {name!r} cannot be loaded: {error}"
        return found
    finally:
        logger.enable("lmms_eval")


class LladaV(lmms):
    """LLaDA-V for lmms-eval, by the interface that it recommends: tasks hand over chats with their pictures in place.

    Tasks that the paper has settings for are answered by these, others by their own; `preset` and arguments of
    `generate` win over both. The log says once per task what is used.

    Args:
        pretrained: folder or Hub id; by default the bundled checkpoint, or what the adapter was trained on.
        adapter: folder or Hub id of a LoRA adapter.
        batch_size: questions that are answered together.
        max_batch_size: for lmms-eval, whose search for a batch size is refused.
        device: "auto", or any torch device; each of several processes takes a GPU of its own.
        dtype: of the weights, such as "bfloat16"; by default theirs, and on a CPU float32.
        quantization: hold the language model in fewer bits; see `quantization.QUANTIZATIONS`.
        preset: settings by name, for all tasks.
        paper_settings: whether the tasks of the paper get the paper's settings.
        max_frames: frames of a video at most, spread evenly; by default what the processor says.
        samples: passes for each answer whose likelihood is asked for, at most.
        seed: of sampling, and of the masks of likelihoods.
        trust_remote_code: run code that the checkpoint brings.
        **generation: arguments of `generate`.

    Raises:
        OSError: if there is no such checkpoint.
        TypeError: for an argument that is none of these.
        ValueError: if one breaks a rule.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        preset: str | None = None,
        paper_settings: bool = True,
        max_frames: int | None = None,
        samples: int = 128,
        seed: int = 0,
        trust_remote_code: bool = False,
        **generation: Any,
    ) -> None:
        super().__init__()
        self.batch_size = _whole_batch_size(batch_size, max_batch_size)
        self.preset, self.paper_settings, self.samples, self.seed = preset, paper_settings, samples, seed
        if preset is not None:
            find_preset(preset)
        if unknown := [name for name in resolve_aliases(generation) if name not in SETTINGS]:
            raise TypeError(f"model_args: {explain_unknown(unknown[0], [*SETTINGS, *_own_arguments()])}")
        self.given = {name: _plain(value) for name, value in resolve_aliases(generation).items()}
        processes = Processes()
        self._rank, self._world_size = processes.rank, processes.count
        place = processes.device(device or "auto")
        for source in (pretrained, adapter):
            check_source(source)
        self._assistant: asking.Assistant | None = asking.load(
            pretrained, place, trust_remote_code, adapter, quantization, _known_dtype(dtype)
        )
        self.device = torch.device(self.assistant.model.device)
        config = copy.deepcopy(self.assistant.model.generation_config)
        config.change(self.given)
        config.validate()
        if max_frames is not None:
            self.assistant.processor.image_processor.max_video_frames = int(max_frames)
        self._viewer = PromptViewer(self.assistant.processor)
        self._told: set[str] = set()

    @property
    def assistant(self) -> asking.Assistant:
        """Model and processor, until `clean` is called."""
        if self._assistant is None:
            raise RuntimeError("this model was freed by clean(); make another LladaV")
        return self._assistant

    def clean(self) -> None:
        """Free the model, before lmms-eval judges the answers."""
        self._assistant = None
        super().clean()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer requests.

        Args:
            requests: of one task or several.

        Returns:
            The answers, in the order of the requests.

        Raises:
            ValueError: if a picture cannot be read, or a task asks for what the loop cannot do.
        """
        seeds = self._seeds(requests)
        by_settings = sorted(range(len(requests)), key=lambda number: _settings_key(self._arguments(requests[number])))
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), desc="LLaDA-V", disable=self.rank != 0) as bar:
            for _, group in groupby(by_settings, key=lambda number: _settings_key(self._arguments(requests[number]))):
                numbers = list(group)
                task, _, _, kwargs = self._arguments(requests[numbers[0]])
                settings = self._settings(task, kwargs)
                how = Asking(settings.generation, batch_size=self.batch_size)
                for window in _windows(numbers, self.batch_size * BATCHES_OF_A_WINDOW):
                    prompts = [self._prompt(requests[number], settings.tag) for number in window]
                    chats, lengths = zip(*prompts, strict=True)
                    own_seeds = [seeds[number] for number in window]
                    replies = answer_in_batches(self.assistant, chats, lengths, how, own_seeds)
                    answers |= {number: reply.text for number, reply in zip(window, replies, strict=True)}
                    bar.update(len(window))
        return [GenerationResult(answers[number]) for number in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Not possible here: chats of lmms-eval are for answers in words.

        Raises:
            NotImplementedError: always, with the way that is.
        """
        raise NotImplementedError(
            "lmms-eval asks for likelihoods through its simple interface only; run the task with --force_simple"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not possible: a round of these tasks is written by their own program, which searches the web or cuts videos.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "rounds that depend on earlier answers are not supported; lmms-eval has them in mmsearch and ovobench only"
        )

    def _arguments(self, request: Instance) -> tuple[str, str, int, Mapping[str, Any]]:
        """Task, split, number of the document and `generation_kwargs` of a request."""
        _, _, kwargs, number, task, split = request.args
        return task, split, number, kwargs

    def _messages(self, request: Instance) -> Sequence[Mapping[str, Any]]:
        """The chat of a request, as lmms-eval has it."""
        task, split, number, _ = self._arguments(request)
        return request.args[1](self.task_dict[task][split][number])

    def _settings(self, task: str, kwargs: Mapping[str, Any]) -> TaskSettings:
        """The settings of a task, which the log is told when they are new."""
        model = self.assistant.model
        try:
            lengths = (model.generation_config.block_length, model.config.text_config.max_position_embeddings // 2)
            settings = settings_of_task(task, kwargs, self.given, self.preset, self.paper_settings, *lengths)
            resolve_generation(model, Asking(settings.generation))
        except ValueError as error:
            raise ValueError(f"{task}: {error}") from error
        if self.rank == 0:
            self._say(f"{task}: {settings.describe()}")
            for text in settings.not_honoured:
                self._say(f"{task}: not honoured: {text}", "WARNING")
        return settings

    def _say(self, text: str, level: str = "INFO") -> None:
        if text not in self._told:
            logger.log(level, text)
            self._told.add(text)

    def _prompt(self, request: Instance, tag: str | None) -> tuple[Chat, int]:
        """A request as the processor takes it, with its length in tokens."""
        task, _, number, _ = self._arguments(request)
        try:
            chat = [_message(message) for message in self._messages(request)]
            chat = append_text(chat, f" {tag}") if tag else chat
            return chat, self._viewer.view(chat, check_media(chat)).length
        except (RecordError, ValueError) as error:
            raise ValueError(f"{task}, document {number}: {getattr(error, 'reason', error)}") from error

    def _seeds(self, requests: Sequence[Instance]) -> list[int]:
        """A seed per request, whoever answers it and beside which others; repetitions of one have their own."""
        seen: Counter[tuple[str, str, int]] = Counter()
        seeds = []
        for request in requests:
            same = self._arguments(request)[:3]
            seeds.append(seed_of(f"{self.seed}/{'/'.join(map(str, same))}/{seen[same]}"))
            seen[same] += 1
        return seeds


class LladaVSimple(LladaV):
    """LLaDA-V by lmms-eval's older interface (`--force_simple`): pictures in front of the text, and likelihoods.

    Takes the arguments of `LladaV`.
    """

    is_simple = True

    def _arguments(self, request: Instance) -> tuple[str, str, int, Mapping[str, Any]]:
        _, kwargs, _, number, task, split = request.args
        return task, split, number, kwargs if isinstance(kwargs, Mapping) else {}

    def _messages(self, request: Instance) -> Sequence[Mapping[str, Any]]:
        task, split, number, _ = self._arguments(request)
        seen = request.args[2](self.task_dict[task][split][number]) or []
        seen = seen if isinstance(seen, list | tuple) else [seen]
        parts = [{"type": _kind(item), "url": item} for item in seen]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": request.args[0]}]}]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Rate answers to questions.

        Args:
            requests: consecutive ones about a document are the answers to choose among.

        Returns:
            For each a pair: the loss, -log p(answer and its end | prompt) over the number of tokens, since lmms-eval
            takes the answer of the smallest value; and whether `generate` writes this answer, on a canvas that
            holds the longest of those it is among.

        Raises:
            ValueError: if a picture cannot be read, or the task wants answers rated without their question.
        """
        rated: list[GenerationResult] = []
        if any(len(request.args) != 6 for request in requests):
            raise ValueError("acc_mutual_info rates answers without their question, which is not supported; use acc")
        with tqdm(total=len(requests), desc="LLaDA-V", disable=self.rank != 0) as bar:
            for _, group in groupby(requests, key=lambda request: (self._arguments(request)[:3], request.args[0])):
                same = list(group)
                # lmms-eval 0.7.3 makes text of every response but of what it finds in a GenerationResult.
                rated += [GenerationResult(pair) for pair in self._rated(same)]
                bar.update(len(same))
        return rated

    def _rated(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        task, split, number, _ = self._arguments(requests[0])
        answers = []
        for request in requests:
            told = request.args[1]
            answers.append(str(told if isinstance(told, str) else told(self.task_dict[task][split][number])).strip())
        assistant, chat = self.assistant, self._prompt(requests[0], None)[0]
        inputs = assistant.processor.apply_chat_template(
            load_videos(chat, assistant.processor.image_processor.max_video_frames),
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        scores = assistant.model.score(
            **inputs, answers=answers, tokenizer=assistant.tokenizer, num_samples=self.samples,
            batch_size=self.batch_size, seed=self.seed,
        )  # fmt: skip
        canvas = dict.fromkeys(LENGTHS, int(scores.num_tokens.max()))
        written = assistant.model.generate(**inputs, return_dict_in_generate=True, temperature=0.0, **canvas).answers[
            0
        ]
        said = assistant.tokenizer.decode(written, skip_special_tokens=True).strip()
        losses = (-scores.log_likelihoods_per_token).tolist()
        return [(loss, said == answer) for loss, answer in zip(losses, answers, strict=True)]


def _own_arguments() -> list[str]:
    return [name for name in signature(LladaV).parameters if name != "generation"]


def _whole_batch_size(batch_size: int | str, largest: int | None) -> int:
    if largest is not None or not str(batch_size).isdecimal() or int(batch_size) < 1:
        given = f"max_batch_size={largest!r}" if largest is not None else f"batch_size={batch_size!r}"
        raise ValueError(f"{given}: a batch size is not searched for; give a whole number, such as --batch_size 8")
    return int(batch_size)


def _known_dtype(name: str | None) -> str | None:
    known = ("float32", "bfloat16", "float16")
    if name not in (None, "auto", *known):
        raise ValueError(f"dtype={name!r} is not known; choose one of auto, {', '.join(known)}")
    return None if name == "auto" else name


def _plain(value: Any) -> Any:
    """A value of --model_args: lmms-eval reads numbers and truth values; lists and none are read here."""
    if not isinstance(value, str):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if value.lower() == "none":
        return None
    if value.startswith(("[", "{", '"')):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"model_args: {value} is not JSON ({error})") from error
    return value


def _settings_key(arguments: tuple[str, str, int, Mapping[str, Any]]) -> tuple[str, str]:
    """Requests of one task with the same `generation_kwargs` are answered together."""
    task, _, _, kwargs = arguments
    return task, json.dumps(kwargs, sort_keys=True, default=repr)


def _windows(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _kind(visual: Any) -> str:
    """What something is that a task shows: lmms-eval's simple interface does not say."""
    if isinstance(visual, list) or (isinstance(visual, str) and Path(visual).suffix.lower() not in PICTURE_SUFFIXES):
        return "video"
    return "audio" if isinstance(visual, Mapping) and "array" in visual else "image"


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of lmms-eval, as the processor takes it."""
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {"role": message["role"], "content": [_part(part) for part in content]}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a message: text, a picture, or a video as a file, a folder of frames or a list of them."""
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    source = part.get("url")
    if kind == "image":
        return {"type": "image", "image": _MEDIA.picture(source)}
    if kind != "video":
        raise ValueError(f"the question holds {kind}, which LLaDA-V does not take; it takes text, pictures and videos")
    clip = {**part, **source} if isinstance(source, Mapping) else part
    if any(clip.get(name) is not None for name in ("start_time", "end_time", "video_start", "video_end")):
        raise ValueError("the question is about a part of a video, and parts are not cut out; cut the file beforehand")
    return {"type": "video", "video": _MEDIA.video(source)}
