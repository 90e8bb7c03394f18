"""Docstrings are plain text, as `help()` prints them. Here they become reStructuredText that says the same: nothing in them is markup but code in `backticks`."""

import re
from collections.abc import Iterator

CODE = re.compile(r"(`[^`]+`)")
SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Class attributes|Example):$")  # napoleon knows what is below
LABEL = re.compile(r"(Use when|Cost|Flags|Paper|Departures|Args|Raises|Returns): (?=\S)")  # a paragraph that begins with what it is about


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring: symbols taken literally, formulas and code in blocks of their own, each label at the head of a paragraph.

    Example:
        >>> as_rst(["Minimises |x|_2 * c, see `sgd`:", "", "    x ← x − g*", "Paper: none."])
        ['Minimises \\\\|x\\\\|_2 \\\\* c, see `sgd`:', '', '::', '', '    x ← x − g*', '', '**Paper:** none.']
    """
    return list(_converted(lines))


def _converted(lines: list[str]) -> Iterator[str]:
    inside, verbatim, above = False, False, ""  # inside a section; inside a formula or an example; the line above
    for line in lines:
        indented, text = line.startswith(" "), line.strip()
        if not text:
            verbatim = verbatim and not inside  # an example ends with a blank line, a formula where the text goes on
            new = line
        elif indented and (verbatim or text.startswith(">>>")):
            new, verbatim = line, True
        elif indented and not inside:
            if not verbatim:
                yield from ("::", "") if not above else ("", "::", "")
            new, verbatim = line, True
        elif indented:
            new = escaped(line)
        else:
            if above and (verbatim or inside or SECTION.match(text) or LABEL.match(text)):
                yield ""
            inside, verbatim = bool(SECTION.match(text)), False
            label = LABEL.match(text)
            new = f"**{label[1]}:** {escaped(text[label.end() :])}" if label else escaped(text)
        yield new
        above = text


def escaped(text: str) -> str:
    """The text with every symbol that reStructuredText would read as markup taken literally, but for code in backticks."""
    parts = CODE.split(text)
    return "".join(part if k % 2 else re.sub(r"([*|\\`]|_(?!\w))", r"\\\1", part) for k, part in enumerate(parts))
