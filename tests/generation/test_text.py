"""From text to text, and the command that does it."""

import pytest
import torch

from latentpt.data.tokenizer import load_tokenizer
from latentpt.generation.decode import generate
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Writer
from tests.conftest import tiny_model
from tests.folders import BYTES_VOCAB, launch, write_run, write_tokenizer


def bytes_model(**thoughts):
    return tiny_model(dtype=torch.float32, size={"vocab_size": BYTES_VOCAB}, **thoughts)


@pytest.fixture
def writer(tmp_path):
    model = bytes_model(method="latent", num_thoughts=1)
    return Writer(model, load_tokenizer(write_tokenizer(tmp_path)))


def test_streamed_pieces_add_up_to_the_text_returned(writer):
    heard = ["", ""]

    def on_text(row, piece):
        heard[row] += piece

    warm = Sampling(temperature=3.0, seed=1)  # bytes of 128 and more, hence pieces of characters, occur
    texts = writer.write(["ab", "hello"], 30, warm, on_text)
    assert texts == heard
    ids = generate(writer.model, [writer.encode("ab")], 30, warm, [256])[0]
    assert texts[0] == writer.tokenizer.decode([token for token in ids if token != 256])


def test_an_empty_prompt_begins_after_the_end_of_document_token(writer):
    assert writer.encode("") == [256]


def test_the_command_continues_each_prompt(tmp_path, monkeypatch, capsys):
    data = write_tokenizer(tmp_path / "data")
    model = bytes_model(method="latent", num_thoughts=2)
    run = write_run(tmp_path / "run", model, data)
    expected = Writer(model, load_tokenizer(data)).write(["the", "a"], 9, Sampling())
    common = ("--run", run, "--max-new-tokens", 9, "--device", "cpu")
    assert launch("generate", monkeypatch, *common, "--prompt", "the") == 0
    assert capsys.readouterr().out == "the" + expected[0] + "\n"
    assert launch("generate", monkeypatch, *common, "--prompt", "the", "--prompt", "a") == 0
    assert capsys.readouterr().out == f"the{expected[0]}\n\na{expected[1]}\n"


@pytest.mark.parametrize(
    "wrong, said",
    [
        (("--step", 8), "no checkpoint of step 8; the nearest is step 7"),
        (("--tokenizer", "nowhere.json"), "nowhere.json: there is no such tokenizer file"),
        (("--top-p", 0), "top_p must lie in"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, monkeypatch, capsys, wrong, said):
    run = write_run(tmp_path / "run", bytes_model(), write_tokenizer(tmp_path / "data"))
    assert launch("generate", monkeypatch, "--run", run, "--prompt", "x", *wrong) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
