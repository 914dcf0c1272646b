"""Who may import whom, drawn from the table that the tests check: areas of the package, and what is shipped."""

import importlib.util
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from svg import Drawing, text_width

LAYOUT = Path(__file__).resolve().parent.parent / "tests" / "test_layout.py"

# Which area a module is of: the first with a fitting pattern.
AREAS: dict[str, tuple[str, ...]] = {
    "command line": ("cli", "cli_*", "__main__"),
    "shipped beside weights": ("*_lladav",),
    "the bundled checkpoint": ("tiny_*", "train_tower", "twins"),
    "evaluation": ("eval_*",),
    "lmms-eval": ("lmms_eval_*", "paper_table"),
    "many pictures": ("batch_*", "predicting"),
    "serving": ("answer_queue", "untrusted_pictures", "chat_requests", "server", "web", "web_*"),
    "answering": ("assistant", "asking", "chatting", "streaming", "recording*", "demo", "answering_memory"),
    "speed": ("bench*",),
    "the suite": ("splits", "suite", "shape_scenes", "scene_*", "signs", "lettering", "charts", "contact_sheets"),
    "records": ("record_files", "records", "data", "media"),
    "looking at records": ("data_*", "prompt_view"),
    "publishing": ("pushing", "cards"),
    "checkpoint folders": ("verification", "comparison", "publishing", "official_export", "parts_config"),
    "adapters": ("adapter*",),
    "training runs": (
        "train", "trainer", "training_*", "dry_run", "held_out", "run_settings", "streams", "lengths", "launching",
    ),
    "training batches": ("collation", "labels", "noise", "packing", "rows", "samples", "batches", "bare_prompts"),
    "recipes": ("recipes", "recipe_changes", "trainable", "quantization"),
    "files and processes": ("files", "weights", "sources", "processes", "run_records", "card_facts", "result_tables"),
}  # fmt: skip
OTHERS = "further modules"
SIZE, LINE = 11.0, 15.0

Table = Mapping[str, set[str]]


def import_table() -> dict[str, set[str]]:
    """`MAY_IMPORT` of tests/test_layout.py, whose tests hold the code to it.

    Returns:
        What each module may import. The package itself and what registers it are left out: it hands on names of the
        others when they are first used, and they take its version and the place of the bundled checkpoint from it.
    """
    spec = importlib.util.spec_from_file_location("layout_of_the_package", LAYOUT)
    assert spec is not None
    assert spec.loader is not None
    layout = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layout)
    table: Table = layout.MAY_IMPORT
    known = set(table) - {"__init__", "registration"}
    return {module: (table[module] & known) - {module} for module in sorted(known)}


def area_of(module: str) -> str:
    """The area that a module belongs to."""
    fitting = (area for area, patterns in AREAS.items() if any(fnmatch(module, pattern) for pattern in patterns))
    return next(fitting, OTHERS)


def layers_of(table: Table) -> dict[str, int]:
    """How many steps each entry stands above those that import nothing.

    Args:
        table: what each imports; without circles.

    Returns:
        The layer of each, from 0.

    Raises:
        ValueError: if there is a circle.
    """
    layers: dict[str, int] = {}
    while len(layers) < len(table):
        ready = {name for name in table if name not in layers and table[name] <= set(layers)}
        if not ready:
            raise ValueError(
                f"{', '.join(sorted(set(table) - set(layers)))} import each other; mend AREAS, if areas do"
            )
        layers |= {name: 1 + max((layers[other] for other in table[name]), default=-1) for name in ready}
    return layers


def direct(table: Table) -> dict[str, set[str]]:
    """Of what each imports, that which it does not reach through another import as well."""

    @cache
    def reached(name: str) -> frozenset[str]:
        return frozenset(table[name]).union(*(reached(other) for other in table[name]))

    return {
        name: {one for one in others if not any(one in reached(other) for other in others - {one})}
        for name, others in table.items()
    }


def areas_of(table: Table) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """The modules of each area, and the other areas that it imports from.

    Args:
        table: what each module may import.

    Returns:
        Modules and imported areas by area.
    """
    modules: dict[str, list[str]] = {}
    for module in table:
        modules.setdefault(area_of(module), []).append(module)
    imports = {
        area: {area_of(other) for module in members for other in table[module]} - {area}
        for area, members in modules.items()
    }
    return modules, imports


Box = tuple[float, float, float, float]


def _arrows(drawing: Drawing, boxes: Mapping[str, Box], imports: Table) -> None:
    """A curve from the lower side of each box to the upper sides of what it imports directly."""
    for name, others in sorted(direct(imports).items()):
        for number, other in enumerate(sorted(others, key=lambda name: (boxes[name][0], name))):
            x, y, width, height = boxes[name]
            start = x + width * (number + 1) / (len(others) + 1)
            goal, above = boxes[other][0] + boxes[other][2] / 2, boxes[other][1]
            start_y = y + height
            bend = max(14.0, (above - start_y) * 0.5)
            path = f"M{start:.1f} {start_y:.1f}C{start:.1f} {start_y + bend:.1f} {goal:.1f} {above - bend:.1f} "
            drawing.add("path", d=f"{path}{goal:.1f} {above - 6:.1f}", kind="arrow")
            corners = f"{goal:.1f},{above - 1:.1f} {goal - 3:.1f},{above - 7:.1f} {goal + 3:.1f},{above - 7:.1f}"
            drawing.add("polygon", points=corners, kind="head")


def _rows(layers: Mapping[str, int], most: int) -> list[list[str]]:
    """Names by layer, the highest first, no more than `most` in a row."""
    rows = []
    for layer in sorted(set(layers.values()), reverse=True):
        names = sorted(name for name in layers if layers[name] == layer)
        count = -(-len(names) // most)
        size = -(-len(names) // count)
        rows += [names[start : start + size] for start in range(0, len(names), size)]
    return rows


def _spread(names: list[str], widths: Mapping[str, float], total: float) -> dict[str, tuple[float, float]]:
    """Left side and width of boxes in a row, with equal room around them."""
    room = (total - sum(widths[name] for name in names)) / (len(names) + 1)
    x, places = room, {}
    for name in names:
        places[name] = (x, widths[name])
        x += widths[name] + room
    return places


def draw_areas() -> str:
    """The areas of the package with their modules; what is above imports from what is below.

    Returns:
        The SVG.
    """
    modules, imports = areas_of(import_table())
    width, total = 196.0, 880.0
    lines = {area: _wrapped([name.removesuffix("_lladav") for name in names], 27) for area, names in modules.items()}
    rows = _rows(layers_of(imports), 4)
    boxes: dict[str, Box] = {}
    y = 4.0
    for row in rows:
        height = max(26 + LINE * len(lines[area]) for area in row)
        for area, (x, wide) in _spread(row, dict.fromkeys(row, width), total).items():
            boxes[area] = (x, y, wide, 26 + LINE * len(lines[area]))
        y += height + 34
    drawing = Drawing(total, y - 26, "Areas of the package: what is above imports from what is below")
    _arrows(drawing, boxes, imports)
    for area, (x, top, wide, height) in boxes.items():
        drawing.rect(x, top, wide, height, "box", 5)
        drawing.text(x + 9, top + 18, area, "strong", 12)
        for number, line in enumerate(lines[area]):
            drawing.word(x + 9, top + 34 + number * LINE, line, "soft", SIZE)
    return drawing.svg()


def _wrapped(names: list[str], most: int) -> list[str]:
    """Names in lines of at most so many characters."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + 1 + len(name) <= most:
            lines[-1] += f" {name}"
        else:
            lines.append(name)
    return lines


def draw_shipped() -> str:
    """The modules that are shipped beside weights, by layer.

    Returns:
        The SVG.
    """
    whole = import_table()
    table = {module: others for module, others in whole.items() if module.endswith("_lladav")}
    total, widths = 880.0, {module: text_width(module.removesuffix("_lladav"), SIZE) + 16 for module in table}
    boxes: dict[str, Box] = {}
    y = 4.0
    for row in _rows(layers_of(table), 5):
        for module, (x, wide) in _spread(row, widths, total).items():
            boxes[module] = (x, y, wide, 24.0)
        y += 62
    drawing = Drawing(total, y - 34, "Modules that are shipped beside weights: what is above imports what is below")
    _arrows(drawing, boxes, table)
    for module, (x, top, wide, height) in boxes.items():
        drawing.rect(x, top, wide, height, "box", 5)
        drawing.word(x + 8, top + 16, module.removesuffix("_lladav"), "", SIZE)
    return drawing.svg()
