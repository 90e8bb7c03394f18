"""One self-contained HTML page from the plain numbers of an audit, or of a benchmark."""

from .benchmark_page import render_benchmark, write_benchmark
from .page import render, write
from .thumbnails import thumbnail

__all__ = ["render", "render_benchmark", "thumbnail", "write", "write_benchmark"]
