"""The command line: each verb parses its options, calls the library, and prints.

Importing this package is light: what needs torch is imported inside the verbs, so that `expunge --help` does not wait for it.
"""

from .app import main

__all__ = ["main"]
