"""One self-contained HTML page from the plain numbers of an audit."""

from .page import render, write

__all__ = ["render", "write"]
