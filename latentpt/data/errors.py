"""The one error of the data code that is the user's to fix."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used, said in one sentence that names the file and the reason.

    Attributes:
        of_one_rank: whether one process of several may meet it alone, which then has to say it itself.
    """

    def __init__(self, sentence: str, of_one_rank: bool = False) -> None:
        super().__init__(sentence)
        self.of_one_rank = of_one_rank
