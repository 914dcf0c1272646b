"""Questions put to a model: in batches of similar length, each about its own pictures and, blind, about others."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch

from .eval_metrics import Ignored
from .eval_survey import Entry, Survey, other_pictures, with_pictures
from .eval_tasks import Question, Task, append_text
from .generation_configuration_lladav import DEFAULTS, explain_unknown, resolve_aliases
from .media import load_videos
from .presets_lladav import find_preset
from .prompt_view import PromptViewer

Key = tuple[int, int, bool]
NOT_SETTINGS = ("return_dict_in_generate", "output_history", "output_scores")  # what is returned, not what is said


@dataclass(frozen=True)
class Item:
    """Something to ask: a question of a task, about its own pictures or those of another.

    Attributes:
        task: number of the task.
        number: of the question in it.
        other: whose pictures it is asked about; None for its own.
    """

    task: int
    number: int
    other: int | None = None

    @property
    def key(self) -> Key:
        """What tells it from all others: task, question, and whether it is asked blind."""
        return self.task, self.number, self.other is not None


@dataclass(frozen=True)
class Answer:
    """An item that was answered.

    Attributes:
        task: number of the task.
        number: of the question in it.
        blind: whether it was asked about the pictures of another question.
        id: of the question.
        kind: of the question.
        metric: how the answer was rated.
        question: the words of the question.
        expected: the answer that was expected.
        given: what the model said, or chose.
        score: 0 to 1.
        tokens_per_forward: of a written answer; None for a choice by likelihood.
        forwards: passes of the model.
    """

    task: int
    number: int
    blind: bool
    id: str
    kind: str
    metric: str
    question: str
    expected: str
    given: str
    score: float
    tokens_per_forward: float | None
    forwards: int

    @property
    def key(self) -> Key:
        """That of its item."""
        return self.task, self.number, self.blind


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
        generation: arguments of `generate`.
        preset: settings by name; its tag goes after every question that is answered in words.
        seed: of sampling, and of the masks of choices. Every question has a random stream of its own, so that
            batches and processes do not change answers.
        samples: passes for each choice at most.
        batch_size: questions, or passes of choices, that run together.
        ignored: what exact match does not look at.
    """

    generation: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    seed: int = 0
    samples: int = 128
    batch_size: int = 32
    ignored: Ignored = field(default_factory=Ignored)


def list_items(surveys: Sequence[Survey], blind: bool = False) -> list[Item]:
    """Everything that tasks ask.

    Args:
        surveys: one per task.
        blind: also ask every question about another one's pictures, where there is one.

    Returns:
        The items, in order.
    """
    items = []
    for task, found in enumerate(surveys):
        others = other_pictures(found.entries) if blind else []
        items += [Item(task, number) for number in range(len(found.entries))]
        items += [Item(task, number, other) for number, other in enumerate(others) if other is not None]
    return items


def make_batches(
    items: Sequence[Item], tasks: Sequence[Task], surveys: Sequence[Survey], processor: Any, batch_size: int
) -> list[list[Item]]:
    """Put items with prompts of similar length together, the longest first, so that memory runs out early or never.

    Args:
        items: from `list_items`, perhaps without some.
        tasks: what they are of.
        surveys: of these tasks.
        processor: counts tokens; pictures are not opened.
        batch_size: items of a batch at most.

    Returns:
        The batches; choices by likelihood are not put together with others.
    """
    viewer = PromptViewer(processor)
    lengths: dict[Key, int] = {}
    for item in items:
        same = (item.task, item.number, False)  # other pictures may have other sizes, which hardly matters
        if same not in lengths:
            entry, messages = _entry(surveys, item), tasks[item.task].questions[item.number].messages
            lengths[same] = viewer.view(messages, entry.sizes).length
    batches = []
    for by_likelihood in (False, True):
        group = [item for item in items if (_entry(surveys, item).metric == "choice") == by_likelihood]
        group.sort(key=lambda item: (-lengths[item.task, item.number, False], item.key))
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches


def _entry(surveys: Sequence[Survey], item: Item) -> Entry:
    return surveys[item.task].entries[item.number]


def ask_batches(
    model: Any, processor: Any, tasks: Sequence[Task], batches: Sequence[Sequence[Item]], asking: Asking
) -> Iterator[list[Answer]]:
    """Ask batch after batch.

    Args:
        model: a LLaDA-V, or a PEFT model around one, in evaluation mode.
        processor: its processor.
        tasks: what the items are of.
        batches: from `make_batches`.
        asking: how.

    Yields:
        The answers of each batch, in its order.

    Raises:
        ValueError: if a picture cannot be read or a setting breaks a rule.
    """
    for batch in batches:
        questions = [tasks[item.task].questions[item.number] for item in batch]
        chats = [_chat(tasks[item.task], item, question) for item, question in zip(batch, questions, strict=True)]
        if questions[0].metric == "choice":
            replies = [
                choose(model, processor, chat, question.choices, asking)
                for chat, question in zip(chats, questions, strict=True)
            ]
        else:
            names = [f"{asking.seed}/{tasks[item.task].name}/{item.number}/{item.other is not None}" for item in batch]
            seeds = [seed_of(name) for name in names]
            replies = write(model, processor, chats, asking, seeds)
        yield [
            _rated(item, question, reply, asking.ignored)
            for item, question, reply in zip(batch, questions, replies, strict=True)
        ]


def _chat(task: Task, item: Item, question: Question) -> list[dict[str, Any]]:
    if item.other is None:
        return question.messages
    return with_pictures(question.messages, task.questions[item.other].messages)


def seed_of(name: str, *contents: bytes) -> int:
    """The seed of a question's own random stream, whoever answers it, when, and beside which others.

    Args:
        name: what tells the question from others, the seed of the whole run among it.
        *contents: further parts of the name, such as the pixels of a picture.

    Returns:
        A number below 2^56.
    """
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=7)
    for content in contents:
        digest.update(content)
    return int.from_bytes(digest.digest(), "big")


def _rated(item: Item, question: Question, reply: "Reply", ignored: Ignored) -> Answer:
    return Answer(
        task=item.task,
        number=item.number,
        blind=item.other is not None,
        id=question.id,
        kind=question.kind,
        metric=question.metric,
        question=question.text,
        expected=question.accepted[0],
        given=reply.text,
        score=question.rate(reply.text, ignored),
        tokens_per_forward=reply.tokens_per_forward,
        forwards=reply.forwards,
    )


@dataclass(frozen=True)
class Reply:
    """What a model says.

    Attributes:
        text: the answer.
        tokens_per_forward: of its generation; None for a choice by likelihood.
        forwards: passes of the model.
    """

    text: str
    tokens_per_forward: float | None
    forwards: int


def resolve_generation(model: Any, asking: Asking) -> dict[str, Any]:
    """The settings that answers are written with: the checkpoint's own, changed by a preset, changed by what is given.

    Args:
        model: a LLaDA-V.
        asking: how it is asked.

    Returns:
        Those that are set, by name.

    Raises:
        TypeError: for a name that is none of a setting.
        ValueError: if one breaks a rule, or lengths do not fit together.
    """
    known = [name for name in type(model.generation_config).names() if name not in NOT_SETTINGS]
    if unknown := [name for name in asking.generation if name not in known]:
        raise TypeError(explain_unknown(unknown[0], known))
    config = copy.deepcopy(model.generation_config)
    if asking.preset is not None:
        config.change(find_preset(asking.preset).settings)
    config.change(resolve_aliases(asking.generation))
    config.validate()
    config.schedule()
    values = config.to_dict()
    return {name: values[name] for name in DEFAULTS if name not in NOT_SETTINGS and values.get(name) is not None}


@torch.no_grad()
def write(
    model: Any, processor: Any, chats: Sequence[list[dict[str, Any]]], asking: Asking, seeds: Sequence[int]
) -> list[Reply]:
    """Let a model answer chats in words.

    Args:
        model: a LLaDA-V.
        processor: its processor.
        chats: answered as one batch.
        asking: how.
        seeds: one per chat, for settings that sample.

    Returns:
        The replies, in order.
    """
    tag = find_preset(asking.preset).tag if asking.preset is not None else None
    inputs = _inputs(processor, [append_text(chat, f" {tag}") if tag else chat for chat in chats]).to(model.device)
    output = model.generate(
        **inputs,
        tokenizer=processor.tokenizer,
        preset=asking.preset,
        generator=[torch.Generator(model.device).manual_seed(seed) for seed in seeds],
        return_dict_in_generate=True,
        **asking.generation,
    )
    texts = processor.tokenizer.batch_decode(output.answers, skip_special_tokens=True)
    passes = 2 if resolve_generation(model, asking).get("guidance_scale", 1) != 1 else 1
    return [
        Reply(text.strip(), round(rate_of, 4), steps * passes)
        for text, rate_of, steps in zip(
            texts, output.tokens_per_forward.tolist(), output.denoising_steps.tolist(), strict=True
        )
    ]


@torch.no_grad()
def choose(model: Any, processor: Any, chat: list[dict[str, Any]], choices: Sequence[str], asking: Asking) -> Reply:
    """Let a model choose by likelihood: the choice whose log-likelihood per token is highest, its end included.

    Args:
        model: a LLaDA-V.
        processor: its processor.
        chat: with the question.
        choices: the answers.
        asking: how.

    Returns:
        The choice.
    """
    inputs = _inputs(processor, [chat]).to(model.device)
    rated = model.score(
        **inputs,
        answers=list(choices),
        tokenizer=processor.tokenizer,
        num_samples=asking.samples,
        batch_size=asking.batch_size,
        seed=asking.seed,
    )
    best = int(rated.log_likelihoods_per_token.argmax())
    return Reply(choices[best], None, int(rated.num_forwards.sum()))


def _inputs(processor: Any, chats: Sequence[list[dict[str, Any]]]) -> Any:
    frames = processor.image_processor.max_video_frames
    return processor.apply_chat_template(
        [load_videos(chat, frames) for chat in chats],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    )
