"""The site: it builds without a warning or a network, its links lead somewhere, and its code does what it says."""

import ast
import importlib
import inspect
import json
import re
import shlex
import socket
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import draw
import draw_layers
import pytest
import record
import render_readme
import typer
from mkdocs.commands.build import build
from mkdocs.config import load_config

import transformers_lladav
from documents import blocks_of, run_in_turn
from transformers_lladav.cli import app
from transformers_lladav.generation_configuration_lladav import DEFAULTS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(DOCS / "pages")): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))
}
# Elements that a browser fetches as it shows a page, and where they say what.
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "image": "href",
    "use": "href",
    "link": "href",
}
LINKS_NOT_FETCHED = {"next", "prev", "canonical"}


class Page(HTMLParser):
    """What a page links, what it fetches, and what in it can be linked."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.fetched, self.classes = set(), [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given["id"]} if given.get("id") else set()
        self.classes |= set((given.get("class") or "").split())
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        where = given.get(FETCHED.get(tag, ""))
        if where and not LINKS_NOT_FETCHED & set((given.get("rel") or "").split()):
            self.fetched.append(where)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*arguments):
            raise AssertionError(f"the build connects to {arguments[1:]}")

        patch.setattr(socket.socket, "connect", refuse)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(
            load_config(str(DOCS / "mkdocs.yml"), site_dir=str(folder), strict=True)
        )  # a warning ends a strict build
    return folder


@pytest.fixture(scope="module")
def built(site):
    """The pages of the site by their files."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_built(site, built):
    expected = {site / name.removesuffix(".md") / "index.html" for name in PAGES if not name.endswith("index.md")}
    assert expected | {site / "index.html", site / "applications" / "index.html"} <= set(built)


def test_links_and_anchors_lead_somewhere(site, built):
    checked = 0
    for path, page in built.items():
        if path.name == "404.html":
            continue  # its links are absolute: it may be shown anywhere
        for link in [*page.links, *page.fetched]:
            if urlsplit(link).scheme:
                continue
            target, anchor = urldefrag(link)
            found = (path.parent / unquote(target)).resolve() if target else path
            found = found / "index.html" if found.is_dir() else found
            assert found.is_file(), f"{path.relative_to(site)} links {link}"
            if anchor and found in built:
                assert unquote(anchor) in built[found].ids, f"{path.relative_to(site)} links {link}"
            checked += 1
    assert checked > 1000


def test_nothing_comes_from_another_host(site, built):
    for path, page in built.items():
        remote = [place for place in page.fetched if urlsplit(place).netloc]
        assert not remote, f"{path.relative_to(site)} fetches {remote}"
        assert "mermaid" not in page.classes, f"{path.relative_to(site)}: the theme fetches mermaid from a host"
    for path in site.rglob("*.css"):
        places = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", path.read_text(encoding="utf-8"))
        assert not [place for place in places if urlsplit(place).netloc], path


def test_every_public_name_is_in_the_reference(site, built):
    documented = {name for path, page in built.items() if "reference" in path.parts for name in page.ids}
    assert {f"transformers_lladav.{name}" for name in transformers_lladav.__all__} <= documented


def test_references_in_docstrings_are_not_left_as_marks(site):
    for path in (site / "reference").rglob("index.html"):
        text = path.read_text(encoding="utf-8")
        assert "[<code>" not in text, path
        assert "<autoref" not in text, path


def test_arguments_in_docstrings_are_read_as_lists(site):
    for path in (site / "reference").rglob("index.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<p>(?:Args|Returns|Raises|Attributes|Yields):", text), path
    model = (site / "reference" / "model" / "index.html").read_text(encoding="utf-8")
    for name in ("labels", "loss_weights", "logits_to_keep"):  # which only transformers' auto_docstring would complete
        assert re.search(rf"<li[^>]*>\s*<b><code>{name}</code></b>", model), name


def test_marks_are_known_and_filled(site):
    kinds = r"table: \w+|code: \w+|drawing: \w+|settings: [\w ]+|arguments: [\w ]+|commands|not run: .+"
    for name, text in PAGES.items():
        for mark in re.findall(r"<!-- (.*?) -->", text):
            assert re.fullmatch(kinds, mark), f"{name}: {mark}"
    for path in site.rglob("index.html"):
        left = re.findall(r"<!-- (?:table|code|drawing|settings|arguments|commands).*?-->", path.read_text("utf-8"))
        assert not left, path


def test_every_result_is_shown(site):
    shown = {name for text in PAGES.values() for name in re.findall(r"<!-- table: (\w+) -->", text)}
    assert shown == set(render_readme.TABLES)
    listed = set(re.findall(r"`(\w+\.json)`", PAGES["design/measuring.md"]))
    assert listed == {path.name for path in render_readme.RESULTS.glob("*.json")}
    result = json.loads((render_readme.RESULTS / "parity.json").read_text(encoding="utf-8"))
    groups = {case["group"] for case in result["cases"]}
    text = (site / "design" / "parity" / "index.html").read_text(encoding="utf-8")
    assert all(f"<td>{group}</td>" in text for group in groups)


def test_every_setting_stands_in_one_table():
    page = PAGES["guides/settings.md"]
    settings = [name for names in re.findall(r"<!-- settings: (.*?) -->", page) for name in names.split()]
    assert sorted(settings) == sorted(DEFAULTS)
    (arguments,) = re.findall(r"<!-- arguments: (.*?) -->", page)
    parameters = inspect.signature(transformers_lladav.LladaVForMaskedDiffusion.generate).parameters
    assert {*arguments.split(), "self", "input_ids", "kwargs"} == set(parameters)


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if blocks_of(text, "python")])
def test_code_runs_and_prints_what_is_shown(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = blocks_of(PAGES[name], "python")
    for block in blocks:
        ast.parse(block.code)
    for block, printed in run_in_turn(blocks):
        assert printed == (block.shown or ""), block.code


def test_commands_and_their_options_exist():
    seen = 0
    for name, text in PAGES.items():
        for block in blocks_of(text, "bash"):
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line)
                if words[:1] == ["lladav"]:
                    check_command(words[1:], f"{name}: {line}")
                    seen += 1
                elif words[:1] == ["python"]:
                    assert (ROOT / words[1]).is_file(), f"{name}: {line}"
    assert seen > 10


def check_command(words, where):
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert not getattr(command, "commands", None), f"{where}: no such command"
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("-")} <= options, where


def test_drawings_are_what_the_code_draws():
    assert draw.stale() == [], "run `python docs/draw.py`"


def test_the_recorded_run_is_what_the_checkpoint_does():
    kept, fresh = record.read_recorded(), record.record()
    for kind, run in kept["answers"].items():
        again = fresh["answers"][kind]
        confidences = [[slot.pop() or 0 for slot in slots["slots"]] for slots in (run, again)]
        # Another processor rounds otherwise.
        assert confidences[0] == pytest.approx(confidences[1], abs=1e-4)
    assert fresh == kept, "run `python docs/record.py` and `python docs/draw.py`"


def test_areas_hold_every_module_once():
    table = draw_layers.import_table()
    modules, imports = draw_layers.areas_of(table)
    assert sorted(name for members in modules.values() for name in members) == sorted(table)
    layers = draw_layers.layers_of(imports)
    assert all(layers[area] > layers[other] for area, others in imports.items() for other in others)
    drawn = draw_layers.draw_areas()
    assert all(name.removesuffix("_lladav") in drawn for name in table)


def test_only_direct_imports_are_drawn():
    table = {"top": {"middle", "bottom"}, "middle": {"bottom"}, "bottom": set()}
    assert draw_layers.direct(table) == {"top": {"middle"}, "middle": {"bottom"}, "bottom": set()}
    assert draw_layers.layers_of(table) == {"top": 2, "middle": 1, "bottom": 0}
    with pytest.raises(ValueError, match="left, right import each other"):
        draw_layers.layers_of({"left": {"right"}, "right": {"left"}})


def test_a_mark_that_names_nothing_is_an_error():
    hooks = importlib.import_module("hooks")
    for mark in ("table: nothing", "code: nothing", "settings: nothing", "arguments: nothing"):
        with pytest.raises(KeyError, match="nothing"):
            hooks.on_page_markdown(f"<!-- {mark} -->")
    with pytest.raises(FileNotFoundError):
        hooks.on_page_content("<!-- drawing: nothing -->")
