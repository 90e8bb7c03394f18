"""Text of strangers in Markdown: names and sentences from files are shown as they are, and cannot become markup, HTML, a new line or a terminal's control code."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

LONGEST = 400  # characters of one piece of text
HIDDEN = ("Cc", "Cf", "Cs", "Co")  # control codes, invisible and directional characters, half characters, and private ones
MARKUP = re.compile(r"([\\`*_\[\]#~$^{}])")
ADDRESS = re.compile(r"://|www\.", re.IGNORECASE)  # what GitHub makes links of
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "@": "&#64;"})


def visible(value: Any, longest: int = LONGEST) -> str:
    """The text on one line without anything that is not seen, for a page or a terminal; a long one is cut.

    Example:
        >>> visible("a\\x1b[31mred\\n\\u202eb"), visible("x" * 9, longest=4)
        ('a�[31mred �b', 'xxxx… (9 characters)')
    """
    text = str(value)
    start = " ".join(text[: 2 * longest].split())  # splits at every character that ends a line
    start = "".join("�" if unicodedata.category(character) in HIDDEN else character for character in start)
    return start if len(start) <= longest and len(text) <= 2 * longest else f"{start[:longest]}… ({len(text):,} characters)"


def prose(value: Any, longest: int = LONGEST) -> str:
    """The text inside a sentence or a cell of a table, with every character that Markdown or HTML reads escaped.

    Example:
        >>> prose("*a*|<b>"), prose("https://x.y www.x.y")
        ('\\\\*a\\\\*&#124;&lt;b&gt;', 'https:&#47;&#47;x.y www\\\\.x.y')
    """
    text = MARKUP.sub(r"\\\1", visible(value, longest).translate(ENTITIES).replace("&#", "\0")).replace("\0", "&#")
    return ADDRESS.sub(lambda found: found[0].replace("/", "&#47;").replace(".", "\\."), text)


def code(value: Any, longest: int = LONGEST) -> str:
    """The text as code, character for character; not for cells of a table, which a bar would end.

    Example:
        >>> code("lr=0.1"), code("a`b")
        ('`lr=0.1`', '``a`b``')
    """
    text = visible(value, longest) or "(empty)"
    fence = _longer_than("`", text, 1)
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def block(lines: Sequence[str], language: str = "") -> str:
    """Lines of code as a block."""
    text = "\n".join(visible(line, longest=2000) for line in lines)
    fence = _longer_than("`", text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def _longer_than(character: str, text: str, least: int) -> str:
    longest = max(map(len, re.findall(f"{re.escape(character)}+", text)), default=0)
    return character * max(least, longest + 1)
