"""Draws docs/images/layers.svg from the table of layers in docs/architecture.md. After a change of the table: `python docs/images/draw_layers.py`."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "architecture.md"
PICTURE = Path(__file__).with_name("layers.svg")
WIDTH, ROW, GAP, LEFT = 860, 50, 8, 184  # pixels: of the picture, of a layer and between two, of the names of layers
CHARACTER, BOX, LINE = 7.3, 26, 34  # width of a letter in a box; height of a box, and from one line of boxes to the next

STYLE = """\
.page { fill: #ffffff } .layer { fill: #eef2f7 } .part { fill: #ffffff; stroke: #7b8ba3 } .arrow { stroke: #7b8ba3; fill: none }
text { font: 13px sans-serif; fill: #1c2733 } .name { font-weight: 600 } .code { font: 12px monospace }
@media (prefers-color-scheme: dark) {
  .page { fill: #131416 } .layer { fill: #202a36 } .part { fill: #131416; stroke: #8fa3bd } .arrow { stroke: #8fa3bd } text { fill: #e3e9f0 }
}"""


def layers_on(page: str) -> list[tuple[int, str, list[str]]]:
    """Level, name and parts of each layer in the page's table, as it stands there: the highest first.

    Example:
        >>> layers_on("| 1 | ground | `store/`, `data/` | files |")
        [(1, 'ground', ['store', 'data'])]
    """
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| (`[^|]+) \|", page, flags=re.MULTILINE)
    return [
        (int(level), name, [part.strip("/").removesuffix(".py") for part in re.findall(r"`([^`]+)`", parts)]) for level, name, parts in rows
    ]


def drawn(layers: list[tuple[int, str, list[str]]]) -> str:
    """The picture as SVG: a band for each layer, a box for each part, and the only direction in which imports go."""
    bands, y = [], GAP
    for level, name, parts in layers:
        boxes, bottom = boxes_of(parts, y + (ROW - BOX) // 2)
        height = bottom + (ROW - BOX) // 2 - y
        bands += [
            f'<rect class="layer" x="{GAP}" y="{y}" width="{WIDTH - 40}" height="{height}" rx="6"/>',
            f'<text x="{2 * GAP}" y="{y + 30}">{level}</text><text class="name" x="{2 * GAP + 20}" y="{y + 30}">{name}</text>',
            *boxes,
        ]
        y += height + GAP
    x = WIDTH - 16
    arrow = f'<path class="arrow" stroke-width="2" d="M{x} {2 * GAP} V{y - 2 * GAP} M{x - 6} {y - 2 * GAP - 9} L{x} {y - 2 * GAP} L{x + 6} {y - 2 * GAP - 9}"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">'
    title = "<title>The layers of expunge: imports go downwards only</title>"
    return "\n".join(
        [head, title, f"<style>\n{STYLE}\n</style>", '<rect class="page" width="100%" height="100%"/>', *bands, arrow, "</svg>", ""]
    )


def boxes_of(parts: list[str], y: int) -> tuple[list[str], int]:
    """Boxes beside one another, in as many lines as they need, and where the last line ends."""
    boxes, x = [], LEFT
    for part in parts:
        width = round(len(part) * CHARACTER) + 16
        if x + width > WIDTH - 40:
            x, y = LEFT, y + LINE
        boxes.append(
            f'<rect class="part" x="{x}" y="{y}" width="{width}" height="{BOX}" rx="4"/><text class="code" x="{x + 8}" y="{y + 17}">{part}</text>'
        )
        x += width + GAP
    return boxes, y + BOX


if __name__ == "__main__":
    PICTURE.write_text(drawn(layers_on(PAGE.read_text(encoding="utf-8"))), encoding="utf-8")
