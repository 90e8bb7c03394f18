"""The site: docs/*.md by Sphinx and MyST, and the API from docstrings. Build it with `sphinx-build -W --keep-going -b html docs docs/_build/html`.

The same files are read on GitHub, so that pages link to one another, and to files of the repository, by plain relative links.
"""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

import expunge

sys.path.insert(0, str(Path(__file__).parent))  # plain_docstrings

from plain_docstrings import as_rst
from sphinx.ext.napoleon import Config, GoogleDocstring

project = "expunge"
author = "the authors of expunge"
copyright = author
release = version = version_of("expunge")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"expunge {release}"
highlight_language = "text"  # a fenced block without a language is output or a formula
suppress_warnings = ["myst.header"]  # a heading may skip a level, as in tables that programs write

myst_heading_anchors = 6  # GitHub's anchors for every heading

default_role = "py:obj"  # `name` in a docstring: code, and a link where the name has a page
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # `run` and `cost` of each method say what those of `Method` say
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
IN_ROOT = {"README.md": "start.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SECTIONS = Config(napoleon_use_rtype=False, napoleon_use_ivar=True, napoleon_custom_sections=[("Class attributes", "params_style")])


def docstring_as_rst(app, what, name, obj, options, lines):
    what = "method" if what == "property" else what  # a property's sentence has a colon now and then, and is no "type: description"
    lines[:] = GoogleDocstring(as_rst(lines), SECTIONS, app, what, name, obj, options).lines()


def readable_defaults(app, what, name, obj, options, signature, returned):
    return signature and signature.replace("<factory>", "..."), returned


def said_elsewhere(app, what, name, obj, skip, options):
    """Names that `expunge` lists itself are not repeated where a subpackage is described; neither are the fields of a named tuple, which say nothing."""
    listed = what == "module" and name in expunge.__all__ and getattr(expunge, name) is obj
    return listed or skip or str(getattr(obj, "__doc__", "")).startswith("Alias for field number")


def links_to_root(app, docname, source):
    """Links to those files lead to their pages."""
    up = "../" * docname.count("/")
    for name, page in IN_ROOT.items():
        source[0] = source[0].replace(f"]({up}../{name}", f"]({up}{page}")


def links_from_here(app, path, docname, content):
    """Files in the root of the repository are pages, too: their links, seen from docs/."""
    if Path(path).name in IN_ROOT:
        content[0] = re.sub(r"\]\((?!\w+:|#)([^)#]+)", lambda link: f"]({from_docs(link[1])}", content[0])


def from_docs(target: str) -> str:
    return IN_ROOT.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}")


def setup(app):
    app.connect("autodoc-process-docstring", docstring_as_rst)
    app.connect("autodoc-process-signature", readable_defaults)
    app.connect("autodoc-skip-member", said_elsewhere)
    app.connect("source-read", links_to_root)
    app.connect("include-read", links_from_here)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
