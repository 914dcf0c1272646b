"""The queue: batches of what goes together, what each would get alone, and callers that leave."""

import threading
import time
import weakref

import pytest
import torch

from test_adapters import load_base, save, train
from transformers_lladav import asking
from transformers_lladav.answer_queue import AnswerQueue, QueueFullError, Request
from transformers_lladav.shape_scenes import make_scene, render_scene

QUESTIONS = ("How many shapes are there?", "Describe the picture.", "What is at the top left?")


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


@pytest.fixture(scope="module")
def picture():
    return render_scene(make_scene("demo", 0), 96)


@pytest.fixture
def batches(assistant, monkeypatch):
    """Sizes of the batches that are generated."""
    sizes, generate = [], assistant.model.generate

    def counted(**inputs):
        sizes.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(assistant.model, "generate", counted)
    return sizes


@pytest.fixture
def make_queue(assistant):
    made = []

    def make(**options):
        made.append(AnswerQueue(assistant, **options))
        return made[-1]

    yield make
    for queue in made:
        queue.close()


class Caller:
    """Someone who waits for a ticket."""

    def __init__(self, queue, request):
        self.ended = threading.Event()
        self.drafts = []
        self.ticket = None
        self.ticket = queue.submit(request, self._changed)
        self._changed()

    def _changed(self):
        if self.ticket is None:
            return
        if self.ticket.draft is not None and not self.ticket.done:
            self.drafts.append(self.ticket.draft)
        if self.ticket.done:
            self.ended.set()

    def wait(self):
        assert self.ended.wait(60)
        return self.ticket


def ask(picture, question, **options):
    return Request(lambda: [asking.user_message([picture] if picture else [], question)], **options)


class Gate:
    """A request that holds the queue until it is opened, so that others pile up behind it."""

    def __init__(self, queue, picture):
        self._open, begun = threading.Event(), threading.Event()

        def messages():
            begun.set()
            assert self._open.wait(60)
            return [asking.user_message([picture], QUESTIONS[0])]

        self.caller = Caller(queue, Request(messages, {"max_new_tokens": 8}))
        assert begun.wait(60)

    def open(self):
        self._open.set()


def text(assistant, ticket):
    assert ticket.error is None, ticket.error
    return assistant.tokenizer.decode(list(ticket.completion.token_ids)).strip()


def test_what_goes_together_is_one_batch_and_each_gets_what_it_would_get_alone(
    assistant, picture, make_queue, batches
):
    alone = [asking.ask(assistant, picture, question) for question in QUESTIONS]
    nothing_to_see = asking.answer(assistant, [asking.user_message([], "What is in the picture?")])
    other = asking.ask(assistant, picture, QUESTIONS[1], threshold=0.9)
    batches.clear()
    queue = make_queue(batch_size=3)
    gate = Gate(queue, picture)
    callers = [Caller(queue, ask(picture, question)) for question in QUESTIONS[:2]]
    different = Caller(queue, ask(picture, QUESTIONS[1], settings={"threshold": 0.9}))
    callers += [Caller(queue, ask(picture, QUESTIONS[2])), Caller(queue, ask(None, "What is in the picture?"))]
    gate.open()
    gate.caller.wait()
    # Three alike that came first, then the oldest of the rest, then what is left.
    expected = [*(answer.text for answer in alone), nothing_to_see.text]
    assert [text(assistant, caller.wait()) for caller in callers] == expected
    assert text(assistant, different.wait()) == other.text
    assert batches == [1, 3, 1, 1]
    first = callers[1].wait().completion
    assert (first.denoising_steps, first.tokens_per_forward) == (alone[1].denoising_steps, alone[1].tokens_per_forward)


def test_the_prompt_is_counted_without_its_padding(assistant, picture, make_queue):
    queue = make_queue()
    gate = Gate(queue, picture)
    callers = [Caller(queue, ask(shown, QUESTIONS[0])) for shown in (picture, None)]
    gate.open()
    lengths = [assistant.inputs([[asking.user_message(shown, QUESTIONS[0])]])["input_ids"].shape[1]
               for shown in ([picture], [])]  # fmt: skip
    assert lengths[0] > lengths[1]
    assert [caller.wait().completion.prompt_tokens for caller in callers] == lengths


def test_drafts_come_step_by_step_for_those_who_watch(assistant, picture, make_queue):
    queue = make_queue()
    gate = Gate(queue, picture)
    watching, other = (
        Caller(queue, ask(picture, QUESTIONS[1], watched=True)),
        Caller(queue, ask(picture, QUESTIONS[1])),
    )
    gate.open()
    ticket = watching.wait()
    assert len(watching.drafts) == ticket.completion.denoising_steps
    assert watching.drafts[-1].text == text(assistant, ticket) == text(assistant, other.wait())
    assert other.ticket.draft is None
    written = [piece for piece in watching.drafts[-1].pieces if piece.confidence is not None]
    assert len(written) == len(ticket.completion.token_ids)
    assert all(0 < piece.confidence <= 1 for piece in written)


def test_seeds_make_sampling_repeatable_in_any_company(assistant, picture, make_queue):
    queue, hot = make_queue(), {"temperature": 5.0, "max_new_tokens": 16}
    alone = Caller(queue, ask(picture, QUESTIONS[1], settings=hot, seed=5)).wait().completion.token_ids
    gate = Gate(queue, picture)
    seeds = (4, 5, 6, None)
    callers = [Caller(queue, ask(picture, QUESTIONS[1], settings=hot, seed=seed)) for seed in seeds]
    gate.open()
    together = [caller.wait().completion.token_ids for caller in callers]
    assert together[1] == alone
    assert len(set(together)) == len(seeds)


def test_a_preset_brings_its_tag(assistant, picture, make_queue, monkeypatch):
    asked, template = [], assistant.processor.apply_chat_template

    def seen(chats, **options):
        asked.append(chats[0][-1]["content"][-1]["text"])
        return template(chats, **options)

    monkeypatch.setattr(assistant.processor, "apply_chat_template", seen)
    Caller(make_queue(), ask(picture, "Which letter?", preset="mmmu")).wait()
    assert asked == ["Which letter? /no_think"]


def test_one_bad_request_spoils_no_batch(assistant, picture, make_queue, batches):
    queue = make_queue()

    def broken():
        raise ValueError("the picture is broken")

    gate = Gate(queue, picture)
    good, bad, also = (Caller(queue, request) for request in (
        ask(picture, QUESTIONS[0]), Request(broken), ask(picture, QUESTIONS[2]),
    ))  # fmt: skip
    gate.open()
    assert str(bad.wait().error) == "the picture is broken"
    assert text(assistant, good.wait()) == asking.ask(assistant, picture, QUESTIONS[0]).text
    assert text(assistant, also.wait()) == asking.ask(assistant, picture, QUESTIONS[2]).text


def test_what_is_too_much_for_memory_together_is_answered_one_by_one(assistant, picture, make_queue, monkeypatch):
    generate, held = assistant.model.generate, []

    class Tensor:
        """Stands for one that takes memory for as long as something refers to it."""

    def small_memory(**inputs):
        tensor = Tensor()
        assert not any(earlier() for earlier in held), "the batch that failed is still in memory"
        held.append(weakref.ref(tensor))
        if len(inputs["input_ids"]) > 1:
            raise RuntimeError("CUDA out of memory")
        return generate(**inputs)

    monkeypatch.setattr(assistant.model, "generate", small_memory)
    queue = make_queue()
    gate = Gate(queue, picture)
    callers = [Caller(queue, ask(picture, question)) for question in QUESTIONS]
    gate.open()
    answers = [text(assistant, caller.wait()) for caller in callers]
    monkeypatch.undo()
    assert answers == [asking.ask(assistant, picture, question).text for question in QUESTIONS]


def test_what_breaks_a_rule_ends_with_its_reason(picture, make_queue):
    ticket = Caller(make_queue(), ask(picture, QUESTIONS[0], settings={"max_new_tokens": 100_000})).wait()
    assert isinstance(ticket.error, ValueError)
    assert "100000" in str(ticket.error).replace(",", "")


def test_a_generation_nobody_waits_for_ends_after_its_step(assistant, picture, make_queue, monkeypatch):
    steps, generate = [], assistant.model.generate

    def counted(callback_on_step_end, **inputs):
        return generate(callback_on_step_end=lambda step: (steps.append(step), callback_on_step_end(step)), **inputs)

    monkeypatch.setattr(assistant.model, "generate", counted)
    queue = make_queue()
    gate = Gate(queue, picture)
    leaving = Caller(queue, ask(picture, QUESTIONS[1], watched=True))
    changed = leaving.ticket._on_change

    def leave_at_the_third():
        changed()
        if len(leaving.drafts) == 3:
            leaving.ticket.cancel()

    leaving.ticket._on_change = leave_at_the_third
    gate.open()
    after = Caller(queue, ask(picture, QUESTIONS[0], settings={"max_new_tokens": 16})).wait()
    assert len(leaving.drafts) == 3
    assert not leaving.ticket.done
    # Those of the gate, three, the one that noticed, and those of the answer after it.
    before, behind = (ticket.completion.denoising_steps for ticket in (gate.caller.wait(), after))
    assert len(steps) == before + 3 + 1 + behind


def test_those_who_leave_while_waiting_are_not_asked_for(picture, make_queue, batches):
    queue = make_queue(waiting=2)
    gate = Gate(queue, picture)
    gone, staying = Caller(queue, ask(picture, QUESTIONS[0])), Caller(queue, ask(picture, QUESTIONS[2]))
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        queue.submit(ask(picture, QUESTIONS[0]), lambda: None)
    gone.ticket.cancel()
    late = Caller(queue, ask(picture, QUESTIONS[0]))  # there is room again
    gate.open()
    staying.wait()
    late.wait()
    assert not gone.ticket.done
    assert sum(batches) == 3


def test_a_caller_who_fails_hurts_nobody(assistant, picture, make_queue):
    queue = make_queue()

    def fail():
        raise RuntimeError("Event loop is closed")

    queue.submit(ask(picture, QUESTIONS[1], watched=True), fail)
    assert text(assistant, Caller(queue, ask(picture, QUESTIONS[0])).wait())


def test_closing_lets_go_of_everybody(assistant, picture):
    queue = AnswerQueue(assistant)
    gate = Gate(queue, picture)
    waiting = Caller(queue, ask(picture, QUESTIONS[1]))
    closing = threading.Thread(target=queue.close)
    closing.start()
    while not waiting.ticket.cancelled:
        time.sleep(0.001)
    gate.open()
    closing.join(60)
    assert not closing.is_alive()
    assert not waiting.ticket.done
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(ask(picture, QUESTIONS[0]), lambda: None)


def test_a_template_keeps_its_words_and_is_answered_alone(assistant, picture, make_queue, batches):
    template = "an [MASK:1] triangle at the [MASK:1] left"
    filled = asking.fill(assistant, picture, QUESTIONS[1], template)
    batches.clear()
    queue = make_queue()
    gate = Gate(queue, picture)
    callers = [Caller(queue, ask(picture, QUESTIONS[1], template=template, watched=True)) for _ in range(2)]
    gate.open()
    assert [text(assistant, caller.wait()) for caller in callers] == [filled.text] * 2
    assert callers[0].drafts[-1].text == filled.text
    assert callers[0].wait().completion.finish_reason == "filled"
    assert batches == [1, 1, 1]


def test_adapters_are_switched_between_requests_and_never_mixed(tmp_path, picture):
    own = asking.load(device="cpu")
    adapter = str(save(train(load_base(), seed=3, size=0.2), tmp_path / "adapter"))
    plain = asking.ask(own, picture, QUESTIONS[1]).text
    other = asking.ask(asking.load(adapter=adapter, device="cpu"), picture, QUESTIONS[1]).text
    assert other != plain
    queue = AnswerQueue(own)
    gate = Gate(queue, picture)
    adapters = [None, adapter, None]
    callers = [Caller(queue, ask(picture, QUESTIONS[1], adapter=wanted)) for wanted in adapters]
    gate.open()
    assert [text(own, caller.wait()) for caller in callers] == [plain, other, plain]
    queue.close()


def test_the_adapter_that_came_with_the_model_answers_those_who_name_none(assistant, tmp_path, picture):
    torch.manual_seed(0)  # adapters begin with weights that are drawn
    folders = [str(save(train(load_base(), seed, size=0.2), tmp_path / str(seed))) for seed in (3, 4)]
    own, short = asking.load(adapter=folders[0], device="cpu"), {"max_new_tokens": 8}
    expected = {None: asking.ask(own, picture, QUESTIONS[1], **short).text}
    expected[folders[1]] = asking.ask(
        asking.load(adapter=folders[1], device="cpu"), picture, QUESTIONS[1], **short
    ).text
    assert len({*expected.values(), asking.ask(assistant, picture, QUESTIONS[1], **short).text}) == 3
    queue = AnswerQueue(own)
    for wanted in (None, folders[1], None):
        caller = Caller(queue, ask(picture, QUESTIONS[1], settings=short, adapter=wanted))
        assert text(own, caller.wait()) == expected[wanted]
    queue.close()
