"""What the site takes from elsewhere while it is built: tables of results, tables of the code, figures, drawings."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(folder) for folder in (HERE, ROOT / "model_cards") if str(folder) not in sys.path]

import render_readme  # noqa: E402
from code_tables import TABLES, argument_table, commands, setting_table  # noqa: E402
from draw_layers import draw_areas, draw_shipped  # noqa: E402

log = logging.getLogger("mkdocs.hooks.lladav")

FIGURES = (ROOT / "model_cards" / "assets", ROOT / "src" / "transformers_lladav" / "bundled_checkpoint")
NOTEBOOKS = ROOT / "docs" / "notebooks"
FIGURE_SUFFIXES = (".png", ".gif")
# Drawn in no time from a table of names; the others need torch, or a checkpoint, and lie in `drawings/`.
DRAWN_NOW = {"areas": draw_areas, "shipped": draw_shipped}


def on_files(files: Files, config: Any, **others: Any) -> Files:
    """Let pages link figures as `figures/NAME`, from where the results' own scripts put them, and notebooks.

    Args:
        files: of the site.
        config: of the site.
        **others: unused.

    Returns:
        The files with the figures and notebooks.
    """
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    for folder in FIGURES:
        for path in sorted(folder.iterdir()):
            if path.suffix in FIGURE_SUFFIXES:
                files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    for name in render_readme.PLOTS:
        if not render_readme.plot_is_fresh(name):
            log.warning("figures/%s.png is not drawn from the results as they are: run `make readme`", name)
    return files


def on_page_markdown(markdown: str, **others: Any) -> str:
    """Fill in the marks of a page.

    `<!-- table: NAME -->` is a table of results, as in the README; `<!-- code: NAME -->` one of what the code says;
    `<!-- settings: NAMES -->` are settings of `generate`, `<!-- arguments: NAMES -->` its other arguments, with their
    descriptions; `<!-- commands -->` is the command line.

    Args:
        markdown: the page.
        **others: unused.

    Returns:
        The page without marks but those of drawings.

    Raises:
        KeyError: for a mark whose name is not known.
    """
    markdown = re.sub(r"^<!-- table: \w+ -->$", "\\g<0>\n<!-- end -->", markdown, flags=re.MULTILINE)
    markdown = render_readme.render(markdown)
    markdown = re.sub(r"<!-- table: \w+ -->\n(.*?)\n<!-- end -->", r"\1", markdown, flags=re.DOTALL)
    markdown = re.sub(r"<!-- code: (\w+) -->", lambda mark: TABLES[mark[1]](), markdown)
    markdown = re.sub(r"<!-- settings: ([\w ]+) -->", lambda mark: setting_table(mark[1].split()), markdown)
    markdown = re.sub(r"<!-- arguments: ([\w ]+) -->", lambda mark: argument_table(mark[1].split()), markdown)
    return re.sub(r"<!-- commands -->", lambda mark: commands(), markdown)


def on_page_content(html: str, **others: Any) -> str:
    """Put drawings into a page itself, where the palette decides their colours.

    Args:
        html: the page.
        **others: unused.

    Returns:
        The page with an SVG in the place of every `<!-- drawing: NAME -->`.

    Raises:
        FileNotFoundError: for a drawing that is not there.
    """

    def drawn(mark: re.Match[str]) -> str:
        name = mark[1]
        made = DRAWN_NOW.get(name)
        svg = made() if made else (HERE / "drawings" / f"{name}.svg").read_text(encoding="utf-8")
        return f'<div class="drawing-frame" tabindex="0" data-search-exclude>{svg}</div>'

    return re.sub(r"<!-- drawing: (\w+) -->", drawn, html)
