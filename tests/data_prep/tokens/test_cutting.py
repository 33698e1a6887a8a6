"""Long texts are cut where it makes no difference."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest

from data_prep.tokens import cutting
from latentpt.data.tokenizer import load_tokenizer


def texts() -> dict[str, str]:
    rng = random.Random(0)
    numbers = [rng.randrange(10**6) for _ in range(3000)]
    return {
        "csv": "\n".join(",".join(map(str, numbers[i : i + 5])) for i in range(0, 3000, 5)),
        "base64": base64.encodebytes(rng.randbytes(15_000)).decode(),
        "one long word": base64.b64encode(rng.randbytes(15_000)).decode(),
        "punctuation": "\n\n".join(["==", "--;", "(...)\r", "#!", "   *"] * 800),
        "white space": "x" + " \n\t " * 4000 + "y",
        "code": "if a:\n        return {b: c}\n\n\n" * 700,
        "prose": "It isn't so; he said 12345 times.  Never. " * 500,
    }


@pytest.mark.parametrize("name", texts())
@pytest.mark.parametrize("kind", ["json", "model"])
def test_pieces_have_the_ids_of_the_whole(
    tokenizers: dict[str, Path], kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "PIECE", 1000)
    tokenizer, text = load_tokenizer(tokenizers[kind]), texts()[name]
    pieces = list(cutting.cut_text((text[i : i + 300] for i in range(0, len(text), 300)), tokenizer.encode))
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text)
    if name in ("prose", "code", "csv") and kind == "json":
        assert max(map(len, pieces)) <= 1000 and len(pieces) > 5
    if name == "one long word":
        assert pieces == [text]
