"""A drawing as SVG text: shapes with classes, whose colours the page decides, so that light and dark both work."""

from dataclasses import dataclass, field
from html import escape

# Of a monospaced font: the width of a character in units of its size. `textLength` makes it true everywhere.
CHARACTER = 0.6

# A drawing alone follows the reader's system; in the site, `pages/site.css` sets the same names by its palette.
STYLE = """
.drawing{--ink:#23262e;--soft:#666c79;--rule:#d5d8df;--mask:#d9dce3;--kept:#e4ecfa;--fresh:#1d6fd8;--on-fresh:#fff;
--run:#1d6fd8;--remembered:#dfe4ee;--box:#f2f4f8;--marked:#c2571a;font-family:system-ui,sans-serif}
@media(prefers-color-scheme:dark){.drawing{--ink:#e4e6eb;--soft:#a2a8b5;--rule:#434956;--mask:#474d5a;--kept:#25364f;
--fresh:#79b0ff;--on-fresh:#101725;--run:#79b0ff;--remembered:#343b49;--box:#292e39;--marked:#f0a06a}}
.drawing text{fill:var(--ink)}.drawing .soft{fill:var(--soft)}.drawing .small{font-size:11px}
.drawing .mono{font-family:ui-monospace,monospace}.drawing .strong{font-weight:600}
.drawing .mask{fill:var(--mask)}.drawing .kept{fill:var(--kept)}.drawing .fresh{fill:var(--fresh)}
.drawing text.on-fresh{fill:var(--on-fresh)}.drawing .run{fill:var(--run)}
.drawing .remembered{fill:var(--remembered)}.drawing .box{fill:var(--box);stroke:var(--rule)}
.drawing .rule{stroke:var(--rule);fill:none}.drawing .arrow{stroke:var(--soft);fill:none;stroke-width:1.2}
.drawing .frame{fill:none;stroke:var(--marked);stroke-width:1.6}.drawing .dashed{stroke-dasharray:4 3}
.drawing text.marked{fill:var(--marked)}.drawing .head{fill:var(--soft)}.drawing .black{fill:#000}
""".strip().replace("\n", "")


@dataclass
class Drawing:
    """An SVG in the making.

    Attributes:
        width: in pixels.
        height: in pixels.
        title: what it shows, for those who cannot see it.
        parts: its elements so far.
    """

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list)

    def add(self, tag: str, content: str = "", **attributes: object) -> None:
        """Add an element.

        Args:
            tag: its name.
            content: inside it, already escaped.
            **attributes: `kind` is the class; an underscore stands for a hyphen; numbers are rounded to a hundredth.
        """
        named = {name.replace("_", "-"): value for name, value in attributes.items()}
        if "kind" in named:
            named["class"] = named.pop("kind")
        given = "".join(f' {name}="{escape(number(value))}"' for name, value in named.items())
        self.parts.append(f"<{tag}{given}>{content}</{tag}>" if content else f"<{tag}{given}/>")

    def rect(self, x: float, y: float, width: float, height: float, kind: str, rounded: float = 2) -> None:
        """Add a rectangle.

        Args:
            x: of its left side.
            y: of its upper side.
            width: in pixels.
            height: in pixels.
            kind: its classes.
            rounded: radius of its corners.
        """
        self.add("rect", x=x, y=y, width=width, height=height, rx=rounded, kind=kind)

    def text(self, x: float, y: float, words: str, kind: str = "", size: float = 12, anchor: str = "start") -> None:
        """Add a line of text.

        Args:
            x: where `anchor` stands.
            y: of its base line.
            words: the text.
            kind: its classes.
            size: of the font.
            anchor: "start", "middle" or "end".
        """
        self.add("text", escape(words), x=x, y=y, kind=kind, font_size=size, text_anchor=anchor)

    def word(self, x: float, y: float, words: str, kind: str = "", size: float = 12) -> float:
        """Add monospaced text of a width that is the same with every font.

        Args:
            x: of its left side.
            y: of its base line.
            words: the text.
            kind: its classes.
            size: of the font.

        Returns:
            Its width.
        """
        width = text_width(words, size)
        fitted = {"textLength": width, "lengthAdjust": "spacingAndGlyphs"}
        self.add("text", escape(words), x=x, y=y, kind=f"mono {kind}".strip(), font_size=size, **fitted)
        return width

    def arrow(self, points: list[tuple[float, float]], kind: str = "arrow") -> None:
        """Add a line through points that ends in a head.

        Args:
            points: where it goes; the last two say which way the head looks.
            kind: its classes.
        """
        path = " ".join(f"{'L' if index else 'M'}{number(x)} {number(y)}" for index, (x, y) in enumerate(points))
        self.add("path", d=path, kind=kind)
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 or 1
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        corners = [(x1, y1), (x1 - 7 * dx - 3.2 * dy, y1 - 7 * dy + 3.2 * dx)]
        corners.append((x1 - 7 * dx + 3.2 * dy, y1 - 7 * dy - 3.2 * dx))
        self.add("polygon", points=" ".join(f"{number(x)},{number(y)}" for x, y in corners), kind="head")

    def svg(self) -> str:
        """The whole file."""
        size = f'viewBox="0 0 {number(self.width)} {number(self.height)}" width="{number(self.width)}"'
        opening = f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" role="img" {size}>'
        return "\n".join(
            [opening, f"<title>{escape(self.title)}</title><style>{STYLE}</style>", *self.parts, "</svg>\n"]
        )


def number(value: object) -> str:
    """A value as it stands in an attribute."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text_width(words: str, size: float = 12) -> float:
    """Width of monospaced text in pixels."""
    return len(words) * size * CHARACTER
