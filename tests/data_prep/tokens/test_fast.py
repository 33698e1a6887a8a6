"""gigatoken gives the reference's ids, and is stopped where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tokens import fast
from data_prep.tokens.fast import FastEncoder, fast_encoder
from latentpt.data.errors import DataError
from latentpt.data.tokenizer import load_tokenizer
from tests.data_prep.folders import files, lines, texts, tokenize

pytest.importorskip("gigatoken")
ENCODERS: dict[str, FastEncoder] = {}


@pytest.fixture(scope="module", autouse=True)
def encoders(tokenizers: dict[str, Path]) -> None:
    for kind, path in tokenizers.items():
        encoder = fast_encoder(load_tokenizer(path), "gigatoken")
        assert encoder is not None
        ENCODERS[kind] = encoder


@pytest.mark.parametrize("kind", ["json", "model"])
@settings(max_examples=200, deadline=None)
@given(
    text=st.text(max_size=200)
    | st.lists(st.sampled_from(["<|endoftext|>", " ", "\n", "é", "12"])).map("".join)
)
def test_ids_are_those_of_the_reference(kind: str, text: str) -> None:
    encoder = ENCODERS[kind]
    assert encoder.encode(text).tolist() == encoder._reference.encode(text)


@pytest.mark.parametrize("kind", ["json", "model"])
def test_the_backend_does_not_change_the_shards(
    tmp_path: Path, tokenizers: dict[str, Path], documents: list[str], kind: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents))
    for backend in ("gigatoken", "reference"):
        options = ("--input", tmp_path / "a.jsonl", "--name", "t", "--backend", backend)
        assert tokenize(tokenizers[kind], tmp_path / backend, *options) == 0
    assert files(tmp_path / "gigatoken") == files(tmp_path / "reference")


def test_a_tokenizer_that_it_cannot_read_is_left_to_its_own_library(
    tmp_path: Path, documents: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from data_prep.__main__ import main

    (tmp_path / "a.jsonl").write_bytes(lines(documents))
    arguments = ["--input", str(tmp_path / "a.jsonl"), "--vocab-size", "300", "--model-type", "unigram"]
    assert main(["train_tokenizer", *arguments, "--output", str(tmp_path / "u.model")]) == 0
    assert tokenize(tmp_path / "u.model", tmp_path / "out", "--input", tmp_path / "a.jsonl") == 0
    assert texts(tmp_path / "out") == documents
    options = ("--input", tmp_path / "a.jsonl", "--backend", "gigatoken")
    assert tokenize(tmp_path / "u.model", tmp_path / "other", *options) == 2
    assert "gigatoken cannot read it" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def other_rules(tokenizer: Path, folder: Path) -> Path:
    """The tokenizer with other merges, as a defect of a library would have it."""
    described = json.loads(tokenizer.read_text())
    described["model"]["merges"] = described["model"]["merges"][::-1]
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(described))
    return path


def test_other_ids_stop_the_work_with_the_text_that_has_them(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = fast._without_special_tokens(load_tokenizer(other_rules(tokenizer, tmp_path)))
    monkeypatch.setattr(fast, "_without_special_tokens", lambda _: wrong)
    monkeypatch.setattr("data_prep.tokens.encoding.encoder_of", lambda options: None)
    (tmp_path / "a.jsonl").write_bytes(lines(["argparse.py"]))
    from data_prep.tokens.encoding import EncodeOptions, Encoder

    with pytest.raises(DataError, match="gigatoken gives other ids than its own library for the text"):
        Encoder(EncodeOptions(str(tokenizer)))  # before work, on the probes
    monkeypatch.setattr(fast, "PROBES", ())
    encoder = Encoder(EncodeOptions(str(tokenizer)))
    assert encoder.fast
    encoder.fast.encode_batch(["argparse.py " * 3])  # nothing is compared yet
    encoder.fast.start_unit()
    with pytest.raises(DataError, match="argparse"):  # in the first text of a unit
        encoder.fast.encode_batch(["argparse.py " * 3])
    monkeypatch.setattr(fast, "_COMPARE_EVERY", 100)
    with pytest.raises(DataError, match="argparse"):  # and on the way
        encoder.fast.encode_batch(["argparse.py " * 3] * 20)


def test_it_is_loaded_anew_when_the_process_has_grown(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FastEncoder(load_tokenizer(tokenizer))
    before, text = encoder._encoder, "some text " * 50
    ids = encoder.encode(text).tolist()
    monkeypatch.setattr(fast, "_LEAST_BETWEEN", 100)
    monkeypatch.setattr(fast, "RESIDENT_LIMIT", 1 << 60)
    encoder.encode_batch([text])
    assert encoder._encoder is before
    monkeypatch.setattr(fast, "RESIDENT_LIMIT", 1)
    encoder.encode_batch([text])
    assert encoder._encoder is not before and encoder.encode(text).tolist() == ids
