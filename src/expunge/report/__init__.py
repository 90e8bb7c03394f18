"""One self-contained HTML page from the plain numbers of an audit."""

from .page import render, write
from .thumbnails import thumbnail

__all__ = ["render", "thumbnail", "write"]
