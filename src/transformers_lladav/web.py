"""A page in the browser: show a picture, ask, and watch the answer come out of its masks. `lladav web`."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .suite import example
from .web_talk import NO_ADAPTER, Choice, Queues, Site, Talk
from .web_view import STYLE, Turn, conversation, note

try:
    import gradio
except ImportError as error:
    raise ImportError("the web page needs gradio: pip install 'transformers_lladav[web]'") from error

PACE = 0.1  # a small model would be done before anybody saw a step
SPEEDS = ("exact", "balanced", "fast")
# Questions of the suite's test split, and answers with holes.
EXAMPLES = (
    ("caption", 0, ""),
    ("count", 0, ""),
    ("ocr", 0, ""),
    ("chart", 0, ""),
    ("caption", 1, "a [MASK:1] [MASK:1] at the top left and a purple triangle at the [MASK:1]"),
)


def create_page(site: Site, queues: Queues) -> gradio.Blocks:
    """Build the page.

    Args:
        site: what it offers.
        queues: its models.

    Returns:
        The page, ready to be launched.
    """
    # Uploads older than an hour are deleted.
    with gradio.Blocks(title="LLaDA-V", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown("# LLaDA-V\nAnswers out of masks: every step writes the tokens that the model is surest of.")
        turns = gradio.State([])
        with gradio.Row():
            with gradio.Column(scale=2, min_width=280):
                picture = _picture_box()
            with gradio.Column(scale=3, min_width=320, elem_classes="lv-page"):
                shown = gradio.HTML(conversation([]), elem_id="conversation")
                status = gradio.HTML("", elem_id="status")
                question = gradio.Textbox(
                    label="Question", placeholder="What is in the picture?", max_length=site.characters,
                    elem_id="question",
                )  # fmt: skip
                with gradio.Row():
                    buttons = _buttons()
                with gradio.Accordion("Answer with holes", open=False):
                    template = gradio.Textbox(
                        label="Answer", placeholder="There is a [MASK:1] star at the [MASK:2].", elem_id="template",
                        info="[MASK:n] is a hole of n tokens; everything else stays. Empty: the model answers freely.",
                        max_length=site.characters,
                    )  # fmt: skip
                with gradio.Accordion("Settings", open=False):
                    choices = _choices(site, queues)
        if site.examples:
            gradio.Examples(_draw_examples(), [picture, question, template], label="Examples")
        _connect(Talk(site, queues), buttons, [turns, picture, question, template, *choices], [shown, status])
    return page


def _picture_box() -> gradio.Image:
    """An image that is handed over as the file it is; by itself it would open whatever was sent."""
    box = gradio.Image(
        label="Picture", sources=["upload", "clipboard"], type="filepath", height=300, elem_id="picture"
    )
    # Not by a class of its own: gradio writes a stub file beside every module that has one.
    box.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return box


def _buttons() -> dict[str, gradio.Button]:
    variants: dict[str, Any] = {"Ask": "primary", "Stop": "secondary", "Undo": "secondary", "Clear": "secondary"}
    return {
        name: gradio.Button(name, variant=variant, size="md", min_width=50, elem_id=name.lower())
        for name, variant in variants.items()
    }


def _choices(site: Site, queues: Queues) -> list[Any]:
    """The settings, in the order of `Choice`."""
    first = next(iter(site.models))
    canvas, block, _ = queues.get(first).assistant.model.generation_config.schedule()
    block = min(block, site.max_tokens)
    length = min(canvas, site.max_tokens) // block * block
    models, adapters = list(site.models), [NO_ADAPTER, *site.adapters]
    return [
        gradio.Dropdown(models, value=first, label="Model", visible=len(models) > 1, elem_id="model"),
        gradio.Dropdown(adapters, value=NO_ADAPTER, label="Adapter", visible=len(adapters) > 1, elem_id="adapter"),
        gradio.Radio(
            list(SPEEDS), value=SPEEDS[0], label="Preset", elem_id="preset",
            info="balanced and fast write all tokens that are 90 % sure, and look at the prompt less often.",
        ),
        gradio.Slider(1, site.max_tokens, length, step=1, label="Answer length (tokens)", elem_id="length"),
        gradio.Slider(
            1, site.max_tokens, block, step=1, label="Block length", elem_id="block",
            info="Tokens that are denoised together; the answer length is a multiple of it.",
        ),
        gradio.Slider(
            0, site.max_tokens, 0, step=1, label="Denoising steps", elem_id="steps",
            info="Over all blocks; 0: as many as there are tokens. Fewer steps write more tokens at once.",
        ),
        gradio.Slider(
            0, 1, 0, step=0.01, label="Threshold", elem_id="threshold",
            info="Write every token that is at least so probable; 0: as the preset says.",
        ),
        gradio.Slider(
            0, 1, PACE, step=0.05, label="Pace (seconds per step)", elem_id="pace",
            info="Shows every step for so long; 0: as fast as they come. The time that is told is without it.",
        ),
    ]  # fmt: skip


def _connect(talk: Talk, buttons: dict[str, gradio.Button], inputs: list[Any], outputs: list[gradio.HTML]) -> None:
    """Say what the buttons do."""
    turns, _, question, *_ = inputs

    def ask(said: list[Turn], picture: str | None, text: str, template: str, *chosen: Any) -> Iterator[Any]:
        for shown, status, kept in talk.ask(said, picture, text or "", template or "", Choice(*chosen)):
            yield shown, status, kept, "" if len(kept) > len(said) else gradio.skip()

    def undo(said: list[Turn]) -> tuple[str, str, list[Turn], str]:
        if not said:
            return conversation([]), note("There is nothing to take back."), [], ""
        return conversation(said[:-1]), "", said[:-1], said[-1].question

    # Nothing of this is meant for programs, which have `lladav serve`.
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    everything = [*outputs, turns, question]
    asked = [
        listen(ask, inputs, everything, **private, trigger_mode="once", concurrency_id="ask")
        for listen in (buttons["Ask"].click, question.submit)
    ]
    buttons["Stop"].click(
        lambda said: (conversation(said), note("Stopped.")), turns, outputs, **private, cancels=asked, queue=False
    )
    buttons["Undo"].click(undo, turns, everything, **private, cancels=asked, queue=False)
    buttons["Clear"].click(
        lambda: (conversation([]), "", [], ""), None, everything, **private, cancels=asked, queue=False
    )


def _draw_examples() -> list[list[str]]:
    """Draw the pictures of the examples into files that end with this process."""
    folder = Path(tempfile.mkdtemp(prefix="lladav-examples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = []
    for kind, index, template in EXAMPLES:
        shown = example("test", kind, index)
        assert shown is not None
        picture, question = shown.messages[0]["content"]
        file = folder / f"{kind}-{index}.png"
        picture["image"].save(file)
        rows.append([str(file), question["text"], template])
    return rows


def launch(site: Site, queues: Queues, host: str, port: int, auth: tuple[str, str] | None = None) -> gradio.Blocks:
    """Serve the page from threads of its own.

    Args:
        site: what it offers.
        queues: its models.
        host: address to listen on.
        port: to listen on.
        auth: name and password that visitors must give.

    Returns:
        The page; its address is `local_url`, and `close()` ends it.

    Raises:
        OSError: if the port is taken.
    """
    page: gradio.Blocks = create_page(site, queues).queue(
        max_size=site.waiting, default_concurrency_limit=2 * site.batch_size, api_open=False
    )
    # Fonts of the system: nothing is loaded from elsewhere.
    theme = gradio.themes.Base(primary_hue="emerald", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
    page.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, auth=auth,
        max_file_size=site.picture_bytes, state_session_capacity=200, footer_links=[], ssr_mode=False, theme=theme,
        css=STYLE, enable_monitoring=False, show_error=False,
    )  # fmt: skip
    return page
