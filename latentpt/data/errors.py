"""The one error of the data code that is the user's to fix."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used, said in one sentence that names the file and the reason."""
