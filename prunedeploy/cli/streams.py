"""Standard streams that may be closed, or that cannot write every character."""

from __future__ import annotations

import os
import sys


def prepare_streams() -> None:
    r"""Open what is closed, and let no character end the program.

    A closed stream (``>&-``) is None in Python, and the next file that is opened would get its number, and with it
    what a library prints. A file name or class name may have characters that the terminal's encoding lacks: they are
    written as ``\xe9``.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(opened, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
