"""The page in a real browser: it answers, says in words what is wrong, runs nothing typed, and can be read."""

import re
import shutil
from pathlib import Path

import pytest

from transformers_lladav import asking
from transformers_lladav.cli_serving import free_port
from transformers_lladav.suite import example
from transformers_lladav.web import EXAMPLES, _choices, launch
from transformers_lladav.web_talk import Choice, Queues, Site

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

SCENE = Path(__file__).parent.parent / "model_cards" / "assets" / "scene.png"
CAPTION = "an orange triangle at the top left, a red star at the top right and a green triangle at the right"
TEMPLATE = "an [MASK:1] triangle at the [MASK:1], a red [MASK:1]"
HOSTILE = """<img src=x onerror="window.hacked=1">${window.hacked=2}{{7*7}}<script>window.hacked=3</script>"""
SMALL = 300_000  # bytes of an upload


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


@pytest.fixture(scope="module")
def address(assistant):
    site = Site(models={"bundled": lambda: assistant}, picture_bytes=SMALL)
    queues = Queues(site)
    page = launch(site, queues, "127.0.0.1", free_port("127.0.0.1", 0))
    yield page.local_url.rstrip("/")
    page.close()
    queues.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as runner:
        chromium = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page; no request may leave this machine, and no script may fail."""
    contexts, elsewhere, failures = [], [], []

    def open_it(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a machine with other work to do
        local = (address, "data:", "blob:")
        page.on("request", lambda sent: elsewhere.append(sent.url) if not sent.url.startswith(local) else None)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#ask")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert (elsewhere, failures) == ([], [])


def show(page, file):
    page.set_input_files("#picture input[type=file]", str(file))


def ask(page, question):
    page.fill("#question textarea", question)
    page.click("#ask")


def status(page, text):
    page.wait_for_function("text => document.querySelector('#status').innerText.includes(text)", arg=text)
    return page.inner_text("#status")


def answers(page):
    return [re.sub(r"\s+", " ", item.inner_text()).strip() for item in page.query_selector_all(".lv-answer")]


def test_a_short_limit_leaves_lengths_that_fit_together(assistant):
    site = Site(models={"bundled": lambda: assistant}, max_tokens=20)
    queues = Queues(site)
    chosen = Choice(*(choice.value for choice in _choices(site, queues)))
    assert (chosen.length, chosen.block) == (16, 8)
    queues.close()


def test_a_picture_is_shown_a_question_asked_and_the_answer_comes_out_of_masks(assistant, open_page):
    page = open_page()
    show(page, SCENE)
    page.wait_for_selector("#picture img")
    ask(page, "Describe the picture.")
    page.wait_for_selector(".lv-answer .lv-masked")
    page.wait_for_selector(".lv-answer .lv-rated")
    assert re.search(
        r"20 tokens · 21 forward passes · 1\.00 tokens per forward · [\d.]+ s", status(page, "21 forward")
    )
    assert answers(page) == [CAPTION]
    assert page.query_selector(".lv-answer .lv-masked") is None
    assert page.input_value("#question textarea") == ""
    said = [asking.user_message([SCENE], "Describe the picture."),
            {"role": "assistant", "content": [{"type": "text", "text": CAPTION}]},
            asking.user_message([], "How many shapes are there?")]  # fmt: skip
    second = asking.answer(assistant, said).text
    # The next question is about the same picture; Enter asks it.
    page.fill("#question textarea", "How many shapes are there?")
    page.press("#question textarea", "Enter")
    page.wait_for_function("document.querySelectorAll('.lv-answer').length === 2")
    status(page, "1 tokens")
    assert answers(page) == [CAPTION, second]
    page.click("#undo")
    page.wait_for_function("document.querySelectorAll('.lv-answer').length === 1")
    assert page.input_value("#question textarea") == "How many shapes are there?"
    page.click("#clear")
    page.wait_for_selector(".lv-empty")


def put(page, setting, number):
    """Type a number, leave the field, and see that it stays."""
    field = page.locator(f"{setting} input[type=number]")
    field.fill(str(number))
    field.press("Tab")
    playwright.expect(field).to_have_value(str(number))


def test_settings_reach_the_model(open_page):
    page = open_page()
    show(page, SCENE)
    page.wait_for_selector("#picture img")
    page.click("text=Settings")
    put(page, "#length", 16)
    put(page, "#block", 16)
    put(page, "#steps", 4)
    ask(page, "Describe the picture.")
    assert "16 tokens · 4 forward passes · 4.00 tokens per forward" in status(page, "4 forward passes")
    page.click("#preset label:has-text('fast')")
    put(page, "#steps", 0)
    put(page, "#length", 48)
    put(page, "#block", 8)
    ask(page, "Describe the picture.")
    page.wait_for_function("document.querySelectorAll('.lv-answer').length === 2")
    assert int(re.search(r"(\d+) forward passes", status(page, "tokens per forward")).group(1)) < 15


def test_holes_are_filled(assistant, open_page):
    page = open_page()
    show(page, SCENE)
    page.wait_for_selector("#picture img")
    page.click("text=Answer with holes")
    page.fill("#template textarea", TEMPLATE)
    ask(page, "Describe the picture.")
    page.wait_for_selector(".lv-answer .lv-given")
    page.wait_for_function("document.querySelectorAll('.lv-answer .lv-masked').length === 0")
    assert answers(page)[-1] == asking.fill(assistant, SCENE, "Describe the picture.", TEMPLATE).text


@pytest.mark.parametrize("row", range(len(EXAMPLES)))
def test_examples_work_with_the_bundled_checkpoint(open_page, row):
    kind, index, template = EXAMPLES[row]
    shown = example("test", kind, index)
    page = open_page()
    page.locator("table tbody tr").nth(row).click()
    question = shown.messages[0]["content"][1]["text"]
    page.wait_for_function("text => document.querySelector('#question textarea').value === text", arg=question)
    page.wait_for_selector("#picture img")
    page.click("#ask")
    status(page, "tokens per forward")
    assert answers(page) == [shown.answer]
    given = len(page.query_selector_all(".lv-answer .lv-given"))
    assert (given > 0) == bool(template)


def test_an_answer_can_be_stopped(open_page):
    page = open_page()
    page.click("text=Settings")
    page.fill("#pace input[type=number]", "1")
    page.press("#pace input[type=number]", "Tab")
    ask(page, "Describe the picture.")
    page.wait_for_selector(".lv-answer .lv-rated")
    page.click("#stop")
    assert status(page, "Stopped") == "Stopped."
    assert answers(page) == []


@pytest.mark.parametrize("name", ["text.png", "cut.png"])
def test_what_is_no_picture_is_a_message_and_no_trace(open_page, tmp_path, name):
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "cut.png").write_bytes(SCENE.read_bytes()[:600])
    page = open_page()
    show(page, tmp_path / name)
    page.wait_for_selector("#picture img", state="attached")
    ask(page, "What is this?")
    told = status(page, "the picture")
    assert re.match("the picture (is no picture in one of the formats|cannot be decoded)", told)
    assert page.query_selector("#status [role=alert]") is not None
    assert "Traceback" not in page.content()


def test_an_empty_question_and_a_huge_file_are_messages(open_page, tmp_path):
    page = open_page()
    page.click("#ask")
    assert status(page, "empty") == "the question is empty; ask something, such as 'What is in the picture?'"
    (tmp_path / "huge.png").write_bytes(SCENE.read_bytes() + b"\0" * SMALL)
    show(page, tmp_path / "huge.png")
    page.wait_for_selector("[data-testid=toast-body], .toast-body")
    toast = page.inner_text("[data-testid=toast-body], .toast-body")
    assert "exceed the maximum allowed size of 293.0 Kb" in toast
    assert "Traceback" not in toast
    # And the page goes on.
    show(page, SCENE)
    page.wait_for_selector("#picture img")
    ask(page, "How many shapes are there?")
    status(page, "tokens per forward")
    assert answers(page) == ["three"]


def test_nothing_that_is_typed_is_run(open_page):
    page = open_page()
    ask(page, HOSTILE)
    status(page, "tokens per forward")
    assert page.inner_text(".lv-question") == HOSTILE
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("options", [
    {"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}},
], ids=["light", "dark", "phone"])  # fmt: skip
def test_it_can_be_read_in_light_in_the_dark_and_on_a_phone(open_page, options, tmp_path):
    page = open_page(**options)
    show(page, SCENE)
    page.wait_for_selector("#picture img")
    ask(page, "Describe the picture.")
    status(page, "tokens per forward")
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    # Nothing is wider than the window, and words stand out from what is behind them.
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    for selector in (".lv-answer .lv-rated", ".lv-question", ".lv-figures"):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector


# WCAG's ratio of the luminances of the words and of what is behind them; colours as the browser paints them.
CONTRAST = """
selector => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  const paint = (colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const element = document.querySelector(selector);
  const behind = [];
  for (let node = element; node; node = node.parentElement) behind.unshift(getComputedStyle(node).backgroundColor);
  const [low, high] = [paint(behind), paint([...behind, getComputedStyle(element).color])].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
"""
