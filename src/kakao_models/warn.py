"""Warnings of this package, which point at the line of the caller's own code."""

import os
import sys
import warnings

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class KakaoWarning(UserWarning):
    """A warning of this package. A command prints it as one line on stderr."""


def warn(message: str, category: type[Warning] = KakaoWarning) -> None:
    """Warns at the first line outside of this package that led here."""
    level, frame = 1, sys._getframe()
    while frame and os.path.abspath(frame.f_code.co_filename).startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
