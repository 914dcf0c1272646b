"""The server: OpenAI's own client gets the model's answers, also many at once, and what misbehaves harms nobody."""

import asyncio
import base64
import io
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
import uvicorn

from transformers_lladav import asking
from transformers_lladav.answer_queue import AnswerQueue
from transformers_lladav.chat_requests import ChatRequest, Limits, read_settings
from transformers_lladav.eval_asking import Asking
from transformers_lladav.server import Serving, _before_stops, _Events, _Reply, create_app
from transformers_lladav.shape_scenes import make_scene, render_scene
from transformers_lladav.streaming import Draft, Piece, TokenState

QUESTION, CAPTION = "How many shapes are there?", "Describe the picture."


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


@contextmanager
def running(assistant, **options):
    """A server on loopback; gives its address."""
    app = create_app(assistant, Serving("tiny", **options))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


@pytest.fixture(scope="module")
def address(assistant):
    with running(assistant) as found:
        yield found


def connect(address, **options):
    return openai.OpenAI(base_url=f"{address}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **options})


@pytest.fixture(scope="module")
def client(address):
    return connect(address)


@pytest.fixture
def tickets(monkeypatch):
    """What is in the queue, request by request."""
    seen, submit = [], AnswerQueue.submit

    def kept(*arguments):
        seen.append(submit(*arguments))
        return seen[-1]

    monkeypatch.setattr(AnswerQueue, "submit", kept)
    return seen


def scene(number):
    return render_scene(make_scene("demo", number), 96)


def data_url(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def chat(text, *pictures):
    shown = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}] if shown else text}]


def ask(client, messages, **options):
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def post(address, body, **headers):
    """Send anything at all; gives the status and the answer."""
    kinds = {"Content-Type": "application/json", "Host": "127.0.0.1", **headers}
    host, port = address.removeprefix("http://").split(":")
    lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in kinds.items())]
    lines += [f"Content-Length: {len(body)}", "Connection: close"] if "Content-Length" not in headers else []
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


# Answers


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "transformers_lladav"
    with pytest.raises(openai.NotFoundError, match="'other' is not here; this server has 'tiny'"):
        client.models.retrieve("other")


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_an_answer_is_that_of_the_model(assistant, client, pictures):
    shown = [scene(number) for number in range(pictures)]
    expected = asking.answer(assistant, [asking.user_message(shown, CAPTION)])
    answer = ask(client, chat(CAPTION, *shown))
    assert answer.choices[0].message.content == expected.text != ""
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == expected.tokens
    assert (
        answer.usage.prompt_tokens == assistant.inputs([[asking.user_message(shown, CAPTION)]])["input_ids"].shape[1]
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra["lladav"] == {
        "denoising_steps": expected.denoising_steps,
        "tokens_per_forward": expected.tokens_per_forward,
        "finish_reason": expected.finish_reason,
    }


def test_a_conversation_goes_on(assistant, client):
    first = ask(client, chat(QUESTION, scene(0))).choices[0].message
    messages = [{"role": "system", "content": "Be brief."}, *chat(QUESTION, scene(0)), first,
                {"role": "user", "content": "What is at the top left?"}]  # fmt: skip
    history = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
               asking.user_message([scene(0)], QUESTION),
               {"role": "assistant", "content": [{"type": "text", "text": first.content}]},
               asking.user_message([], "What is at the top left?")]  # fmt: skip
    assert ask(client, messages).choices[0].message.content == asking.answer(assistant, history).text


def test_settings_reach_the_loop(assistant, client):
    options = {"max_tokens": 16, "extra_body": {"threshold": 0.9, "block_length": 16, "prompt_refresh_interval": None}}
    answer = ask(client, chat(CAPTION, scene(0)), **options)
    expected = asking.ask(
        assistant, scene(0), CAPTION, max_new_tokens=16, block_length=16, threshold=0.9, prompt_refresh_interval=None
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.model_extra["lladav"]["denoising_steps"] == expected.denoising_steps
    fast = ask(client, chat(CAPTION, scene(0)), extra_body={"preset": "fast"})
    assert fast.model_extra["lladav"]["tokens_per_forward"] > 1


def test_an_answer_is_no_longer_than_what_was_asked_for(assistant, client):
    whole = asking.ask(assistant, scene(0), CAPTION, max_new_tokens=8)
    assert whole.tokens == 8
    answer = ask(client, chat(CAPTION, scene(0)), max_tokens=5)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (5, "length")
    assert whole.text.startswith(answer.choices[0].message.content)
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in ask(client, chat(CAPTION, scene(0)), max_tokens=5, stream=True)
    )
    assert streamed == answer.choices[0].message.content


def test_sampling_is_repeatable_by_seed(client):
    def sampled(seed):
        return ask(client, chat(CAPTION, scene(0)), temperature=2, seed=seed, max_tokens=16).choices[0].message.content

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(1, 5)}) > 1


# Streams


def read_stream(client, messages, **options):
    chunks = list(ask(client, messages, stream=True, **options))
    return chunks, "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.5, "block_length": 16}, {"remasking": "margin"}])
def test_a_stream_adds_up_to_the_answer(client, settings):
    for number in range(3):
        whole = ask(client, chat(CAPTION, scene(number)), extra_body=settings)
        options = {"stream_options": {"include_usage": True}}
        chunks, text = read_stream(client, chat(CAPTION, scene(number)), extra_body=settings, **options)
        assert text == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
        assert ends == ["stop"]
        assert chunks[-1].usage == whole.usage
        assert chunks[-2].model_extra["lladav"] == whole.model_extra["lladav"]
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_comes_in_pieces_and_can_show_its_drafts(assistant, client):
    expected = asking.ask(assistant, scene(0), CAPTION).text
    chunks, text = read_stream(client, chat(CAPTION, scene(0)), extra_body={"include_drafts": True})
    assert text == expected
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 2
    drafts = [chunk.model_extra["draft"] for chunk in chunks if "draft" in chunk.model_extra]
    assert "░" in drafts[0]
    assert drafts[-1].strip() == expected
    # What was sent before a draft is how that draft begins.
    sent = ""
    for chunk in chunks:
        sent += chunk.choices[0].delta.content or ""
        if draft := chunk.model_extra.get("draft"):
            assert draft.lstrip().startswith(sent)


def test_a_stop_ends_an_answer_and_is_never_sent(assistant, client):
    text = asking.ask(assistant, scene(0), CAPTION).text
    stop = " at the"
    assert stop in text
    before = text.partition(stop)[0]
    whole = ask(client, chat(CAPTION, scene(0)), stop=stop)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (before, "stop")
    assert whole.model_extra["lladav"]["finish_reason"] == "stop_string"
    chunks, streamed = read_stream(client, chat(CAPTION, scene(0)), stop=[stop, "\n"])
    assert streamed == before
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("a b c", [], "a b c"),
        ("a b c", ["b"], "a "),
        ("a b c", ["c", "b"], "a "),
        ("one tw", ["two"], "one "),
        ("one t", ["two", "e t"], "on"),
        ("", ["x"], ""),
        ("ab", ["b\n"], "a"),
    ],
)
def test_what_could_become_a_stop_is_held_back(text, stops, kept):
    assert _before_stops(text, stops) == kept


@pytest.mark.parametrize("fields", [{"stop": "\n"}, {"preset": "chartqa"}], ids=["of the request", "of the preset"])
def test_a_stop_is_seen_where_the_answer_begins_with_it(assistant, fields):
    asked = ChatRequest(model="tiny", messages=chat(QUESTION), stream=True, **fields)
    reply = _Reply(assistant, asked, read_settings(asked, assistant, Asking(), Limits()), "tiny")
    states = (TokenState.COMMITTED, TokenState.COMMITTED, TokenState.MASKED)
    pieces = tuple(Piece(text, state) for text, state in zip(("\n", "a", " ░░"), states, strict=True))
    assert reply.draft(Draft(0, pieces, False)) is None


# Bad requests


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "other"}, 404, "this server has 'tiny'"),
        ({"messages": []}, 400, "messages: "),
        ({"temperature": -1}, 400, "temperature: "),
        ({"tools": [1]}, 400, "not taught to call tools"),
        ({"max_tokens": 10**6}, 400, "longer than the 512"),
        ({"nonsense": 1}, 400, "'nonsense' is not a field"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "has no text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, ""),
    ],
)
def test_bad_requests_are_told_why(address, fields, status, words):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], **fields}
    found, answer = post(address, json.dumps(body).encode())
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert words in answer["error"]["message"]
    assert answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(address, body):
    status, answer = post(address, body)
    assert status == 400
    assert answer["error"]["message"]


def test_other_paths_and_methods_have_answers_of_the_same_form(address, client):
    with pytest.raises(openai.NotFoundError, match="Not Found: /v1/embeddings"):
        client.embeddings.create(model="tiny", input="x")
    status, _ = post(address, b"x", **{"Content-Type": "text/plain"})
    assert status == 415


def test_a_broken_picture_gets_a_reason_also_in_a_stream(client):
    content = io.BytesIO()
    scene(0).save(content, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()[:400]).decode()}"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}},
                                             {"type": "text", "text": QUESTION}]}]  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="picture 1 cannot be decoded"):
        ask(client, messages)
    with pytest.raises(openai.APIError, match="picture 1 cannot be decoded"):
        list(ask(client, messages, stream=True))
    assert ask(client, chat(QUESTION, scene(0))).choices[0].message.content


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(client):
    with pytest.raises(openai.BadRequestError, match=r"4096|positions"):
        ask(client, chat("word " * 20_000))


def test_failures_of_the_server_are_not_told_in_detail(assistant, client, monkeypatch, caplog):
    def broken(**_):
        raise RuntimeError("a secret of this machine")

    monkeypatch.setattr(assistant.model, "generate", broken)
    with pytest.raises(openai.InternalServerError) as failed:
        ask(client, chat(QUESTION))
    assert "secret" not in str(failed.value)
    assert "its log says why" in str(failed.value)
    assert "a secret of this machine" in caplog.text
    monkeypatch.undo()
    assert ask(client, chat(QUESTION)).choices[0].message.content


# Guards


def test_a_key_a_name_and_a_size_are_asked_for(assistant):
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}]}).encode()
    with running(assistant, api_key="secret", limits=Limits(body_bytes=1000)) as address:
        assert connect(address, api_key="secret").models.list().data[0].id == "tiny"
        with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
            connect(address, api_key="guess").models.list()
        good = {"Authorization": "Bearer secret"}
        assert post(address, body, **good)[0] == 200
        status, answer = post(address, body, **good, Host="evil.example")
        assert (status, "'evil.example'" in answer["error"]["message"]) == (421, True)
        assert post(address, b"x" * 1001, **good)[0] == 413
        # A size that is not told is found while reading.
        chunked = b"".join(b"%x\r\n%s\r\n" % (600, b" " * 600) for _ in range(2)) + b"0\r\n\r\n"
        headers = {"Transfer-Encoding": "chunked", "Content-Length": ""} | good
        assert _chunked(address, chunked, headers) == 413


def test_capitals_do_not_count_in_the_names_of_a_server(assistant):
    body = json.dumps({"model": "other", "messages": [{"role": "user", "content": "x"}]}).encode()
    with running(assistant, hosts=("Box.Local",)) as address:
        assert [post(address, body, Host=name)[0] for name in ("Box.Local:80", "box.local", "localhost")] == [
            404, 404, 421,
        ]  # fmt: skip


def _chunked(address, body, headers):
    host, port = address.removeprefix("http://").split(":")
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value]
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return int(connection.recv(4096).split()[1])


def test_too_many_wait_and_too_long(assistant, monkeypatch):
    held = threading.Event()
    generate = assistant.model.generate
    monkeypatch.setattr(assistant.model, "generate", lambda **inputs: held.wait(60) and generate(**inputs))
    try:
        with (
            running(assistant, waiting=1, timeout=1, how=Asking(batch_size=1)) as address,
            ThreadPoolExecutor(2) as pool,
        ):
            client = connect(address)

            def fail():
                with pytest.raises(openai.InternalServerError) as failed:
                    ask(client, chat(QUESTION))
                return failed.value

            first = pool.submit(fail)
            time.sleep(0.3)  # it is being answered, and does not wait
            second = pool.submit(fail)
            time.sleep(0.3)
            with pytest.raises(openai.RateLimitError, match="1 requests wait already"):
                ask(client, chat(QUESTION))
            for late in (first, second):
                assert late.result().status_code == 504
                assert "no answer within 1 s" in str(late.result())
            held.set()
            while True:  # those that were given up make room as soon as the step ends
                try:
                    assert ask(client, chat(QUESTION)).choices[0].message.content
                    break
                except (openai.RateLimitError, openai.InternalServerError):
                    time.sleep(0.05)
    finally:
        held.set()


# Clients that come in numbers, leave, or do not listen


def test_sixteen_clients_get_their_own_answers(assistant, client):
    jobs = [(number % 8, question) for number in range(8) for question in (QUESTION, CAPTION)]
    expected = {job: asking.ask(assistant, scene(job[0]), job[1]).text for job in jobs}
    assert len(jobs) == 16
    with ThreadPoolExecutor(16) as pool:

        def one(number, job):
            messages = chat(job[1], scene(job[0]))
            return read_stream(client, messages)[1] if number % 3 == 0 else (
                ask(client, messages).choices[0].message.content
            )  # fmt: skip

        answers = list(pool.map(one, range(16), jobs))
    assert answers == [expected[job] for job in jobs]


def test_who_leaves_in_the_middle_takes_the_request_along(client, tickets):
    stream = ask(client, chat(CAPTION, scene(0)), stream=True, extra_body={"include_drafts": True})
    for chunk in stream:
        if "draft" in chunk.model_extra:
            break
    stream.close()
    while not tickets[0].cancelled:
        time.sleep(0.005)
    assert tickets[0].completion is None
    assert ask(client, chat(QUESTION, scene(0))).choices[0].message.content


def test_who_leaves_while_waiting_for_a_whole_answer_is_noticed(assistant, client, tickets, monkeypatch):
    held, generate = threading.Event(), assistant.model.generate
    monkeypatch.setattr(assistant.model, "generate", lambda **inputs: held.wait(60) and generate(**inputs))
    try:
        with pytest.raises(openai.APITimeoutError):
            ask(client.with_options(timeout=0.3), chat(QUESTION))
        while not tickets[0].cancelled:
            time.sleep(0.01)
    finally:
        held.set()


def test_who_never_reads_delays_nobody(address, client, tickets):
    body = json.dumps({"model": "tiny", "messages": chat(CAPTION, scene(0)), "stream": True, "include_drafts": True})
    host, port = address.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    deaf.connect((host, int(port)))
    with deaf:
        deaf.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        while not tickets:
            time.sleep(0.005)
        assert ask(client, chat(QUESTION, scene(1))).choices[0].message.content
        while not tickets[0].done:
            time.sleep(0.005)
        assert tickets[0].completion is not None


def test_a_part_that_nobody_takes_ends_the_stream():
    closed = []

    async def events():
        try:
            while True:
                yield "data: {}\n\n"
        finally:
            closed.append(True)

    async def stream():
        async def send(message):
            if message.get("body"):
                await asyncio.Event().wait()

        async def receive():
            await asyncio.Event().wait()

        await asyncio.wait_for(_Events(events(), 0.05)({"type": "http"}, receive, send), 30)

    asyncio.run(stream())
    assert closed == [True]


def test_nothing_of_the_documentation_comes_from_elsewhere(address):
    host, port = address.removeprefix("http://").split(":")
    for path, status in (("/docs", 404), ("/openapi.json", 200), ("/health", 200)):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        assert int(answer.split()[1]) == status
        assert not re.search(r"https?://(?!localhost|127\.0\.0\.1)", answer)
