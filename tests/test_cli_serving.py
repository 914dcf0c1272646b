"""`lladav serve` and `lladav web`: every option arrives, they end in good order, and say why they cannot start."""

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import openai
import pytest
import typer
from typer.testing import CliRunner

from transformers_lladav import cli_serving, server
from transformers_lladav import web as web_page
from transformers_lladav.cli_serving import is_loopback, listen, read_auth, serve, served_name, web

app = typer.Typer()
app.command()(serve)


def test_the_command_serves_until_it_is_told_to_end():
    command = [sys.executable, "-m", "transformers_lladav", "serve", "--port", "0", "--name", "tiny", "--api-key", "k"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            told = process.stderr.readline()
            address = re.search(r"tiny answers at (http://127\.0\.0\.1:\d+/v1)", told).group(1)
            client = openai.OpenAI(base_url=address, api_key="k", max_retries=0, timeout=60)
            answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hello"}])
            assert answer.choices[0].message.content
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, 130)
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


@pytest.fixture
def command(monkeypatch):
    """Runs the command up to the point where it would listen; gives the result and what it would have served."""
    monkeypatch.setenv("COLUMNS", "200")
    loaded, served = [], []
    monkeypatch.setattr(cli_serving, "load_assistant", lambda *options: loaded.append(options))
    monkeypatch.setattr("transformers_lladav.eval_asking.resolve_generation", lambda model, how: {})
    monkeypatch.setattr(server, "create_app", lambda assistant, serving: served.append(serving))
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: [item.close() for item in sockets])

    class Loaded:
        model = None

    monkeypatch.setattr(cli_serving, "load_assistant", lambda *options: loaded.append(options) or Loaded)

    def invoke(*arguments):
        result = CliRunner().invoke(app, ["--port", "0", *map(str, arguments)])
        return result, *(items[-1] if items else None for items in (loaded, served))

    return invoke


def test_every_option_arrives(command):
    options = ["--model", "m", "--adapter", "a", "--preset", "fast", "--set", "threshold=0.5", "--batch-size", 3]
    options += ["--waiting", 7, "--timeout", 9, "--max-tokens", 100, "--max-pictures", 2, "--max-picture-mb", 3]
    options += ["--max-megapixels", 1.5, "--allow-urls", "--device", "cpu", "--quantization", "int8"]
    options += ["--trust-remote-code", "--api-key", "k", "--allowed-host", "box", "--name", "n"]
    result, loaded, serving = command(*options)
    assert result.exit_code == 0, result.output
    assert loaded == ("m", "cpu", True, "a", "int8")
    assert (serving.name, serving.waiting, serving.timeout, serving.api_key) == ("n", 7, 9, "k")
    assert (serving.how.preset, serving.how.generation, serving.how.batch_size) == ("fast", {"threshold": 0.5}, 3)
    limits = serving.limits
    assert (limits.tokens, limits.pictures, limits.picture_bytes) == (100, 2, 3 * 2**20)
    assert (limits.pixels, limits.allow_urls) == (1_500_000, True)
    # Two pictures of 3 MB are 8 MB as base64; 1 MB is left for the words.
    assert limits.body_bytes == 9 * 2**20
    assert set(serving.hosts) == {"127.0.0.1", "localhost", "::1", "box"}


def test_by_default_only_this_machine_is_answered_and_nothing_fetched(command):
    _, _, serving = command()
    assert serving.name == "lladav-bundled"
    assert not serving.limits.allow_urls
    assert "*" not in serving.hosts


def test_a_door_that_stands_open_is_told(command):
    result, _, serving = command("--host", "0.0.0.0")
    assert serving.hosts == ("*",)
    assert "everybody who reaches 0.0.0.0 can ask; see --api-key" in result.output
    result, _, serving = command("--host", "0.0.0.0", "--api-key", "k", "--allowed-host", "box")
    assert serving.hosts == ("box",)
    assert "everybody" not in result.output


def test_a_port_that_is_taken_costs_no_loading(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result, loaded, _ = command("--port", taken.getsockname()[1])
        assert "cannot be listened on: Address already in use; choose another --port" in str(result.exception)
        assert loaded is None


def test_an_address_that_is_not_of_this_machine_is_told_as_such(monkeypatch):
    with pytest.raises(OSError, match=r"^192\.0\.2\.1:80 cannot be listened on: Cannot .*; choose another --host$"):
        listen("192.0.2.1", 80)
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: (_ for _ in ()).throw(unknown))
    with pytest.raises(OSError, match=r"^nowhere:80 .*: Name or service not known; choose another --host$"):
        listen("nowhere", 80)


def test_names_and_addresses(tmp_path):
    (tmp_path / "LLaDA-V-hf").mkdir()
    assert served_name(str(tmp_path / "LLaDA-V-hf"), None) == "LLaDA-V-hf"
    assert served_name("GSAI-ML/LLaDA-V", None) == "GSAI-ML/LLaDA-V"
    assert served_name("GSAI-ML/LLaDA-V", str(tmp_path)) == tmp_path.name
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "box")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    with listen("127.0.0.1", 0) as listening:
        assert listening.getsockname()[1] > 0


@pytest.fixture
def web_command(monkeypatch):
    """Runs `lladav web` up to the point where it would wait; gives the result, what was loaded and offered."""
    monkeypatch.setenv("COLUMNS", "200")
    loaded, launched = [], []
    command = typer.Typer()
    command.command()(web)

    class Page:
        local_url = "http://here/"

    class Loaded:
        model = adapter = None

    monkeypatch.setattr(cli_serving, "load_assistant", lambda *options: loaded.append(options) or Loaded)
    monkeypatch.setattr(web_page, "launch", lambda *options: launched.append(options) or Page)
    monkeypatch.setattr(cli_serving, "wait", lambda: None)

    def invoke(*arguments):
        result = CliRunner().invoke(command, ["--port", "0", *map(str, arguments)])
        return result, loaded, launched

    return invoke


def test_the_page_offers_what_was_named(web_command, tmp_path):
    for name in ("one", "two", "tuned"):
        (tmp_path / name).mkdir()
    options = ["--model", tmp_path / "one", "--model", tmp_path / "two", "--adapter", tmp_path / "tuned"]
    options += ["--max-tokens", 64, "--max-picture-mb", 2, "--max-megapixels", 1, "--waiting", 3, "--timeout", 5]
    options += ["--batch-size", 2, "--device", "cpu", "--quantization", "nf4", "--auth", "me:a:b"]
    result, loaded, ((site, _, host, _, auth),) = web_command(*options)
    assert result.exit_code == 0, result.output
    assert "Open http://here/ in a browser" in result.output
    assert loaded == [(str(tmp_path / "one"), "cpu", False, None, "nf4")]  # the second loads when it is chosen
    assert list(site.models) == ["one", "two"]
    assert site.adapters == {"tuned": str(tmp_path / "tuned")}
    limits = (site.max_tokens, site.picture_bytes, site.pixels, site.waiting, site.timeout, site.batch_size)
    assert limits == (64, 2 * 2**20, 1_000_000, 3, 5, 2)
    assert (host, auth, site.examples) == ("127.0.0.1", ("me", "a:b"), False)


def test_the_bundled_checkpoint_comes_with_examples(web_command):
    _, loaded, ((site, _, _, _, auth),) = web_command()
    assert (list(site.models), site.examples, auth) == (["lladav-bundled"], True, None)
    assert loaded[0][0] is None


def test_an_open_page_and_bad_names_are_told(web_command, tmp_path):
    result, _, _ = web_command("--host", "0.0.0.0")
    assert "everybody who reaches 0.0.0.0 can ask; see --auth" in result.output
    for text in ("me", ":x", "me:"):
        with pytest.raises(ValueError, match="--auth needs a name and a password"):
            read_auth(text)
    (tmp_path / "a" / "same").mkdir(parents=True)
    (tmp_path / "b" / "same").mkdir(parents=True)
    result, _, _ = web_command("--adapter", tmp_path / "a" / "same", "--adapter", tmp_path / "b" / "same")
    assert "have the same name; rename one of the folders" in str(result.exception)


@pytest.mark.parametrize(("page", "command"), [("server", serve), ("page", web)])
def test_the_site_tells_the_defaults_as_they_are(page, command):
    text = (Path(__file__).parent.parent / "docs" / "pages" / "applications" / f"{page}.md").read_text()
    rows = re.findall(r"^\|[^|]+\| `--([\w-]+)` \| (\d+) \|", text, re.MULTILINE)
    parameters = inspect.signature(command).parameters
    assert len(rows) >= 5
    assert {option: float(told) for option, told in rows} == {
        option: parameters[option.replace("-", "_")].default for option, _ in rows
    }


def test_a_page_ends_in_good_order_when_it_is_told_to():
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    cli_serving.wait()
    assert signal.getsignal(signal.SIGTERM) is before
