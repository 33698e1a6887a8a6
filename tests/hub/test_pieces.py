"""Sentencepiece tokenizers as transformers reads them from an export."""

import random

import pytest
import sentencepiece
import tokenizers
import torch
import transformers

from latentpt.config import ConfigError
from latentpt.data.tokenizer import load_tokenizer
from latentpt.hub.folders import export_folder
from latentpt.hub.pieces import to_tokenizers
from tests.conftest import tiny_model
from tests.folders import launch, shared

LLAMA = {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "split_digits": True,
    "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
}  # fmt: skip
KINDS = {
    "unigram": {"model_type": "unigram"},
    "unigram with bytes, bare": {
        "model_type": "unigram", "byte_fallback": True, "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "normalization_rule_name": "identity",
    },
    "unigram with symbols": {"model_type": "unigram", "user_defined_symbols": ["<tool>", "##"]},
    "bpe with bytes": {"model_type": "bpe", "byte_fallback": True},
    "bpe as llama's": LLAMA,
    "bpe across words": {"model_type": "bpe", "split_by_whitespace": False},
    "bpe as gemma's": {**LLAMA, "add_dummy_prefix": False, "user_defined_symbols": ["<tool>", "\n\n"]},
}  # fmt: skip


@pytest.fixture
def corpus():
    return shared("tokenizers", "sentencepiece", "botchan.txt")


def train(folder, corpus, **options):
    """A sentencepiece model of 800 pieces."""
    name = str(folder / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=name, vocab_size=800, minloglevel=2, **options
    )
    return load_tokenizer(f"{name}.model")


def ids_there(tokenizer, text):
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer(text)["input_ids"]


def strange_texts(count):
    """Random mixtures of scripts, symbols, runs of whitespace and newlines."""
    draw = random.Random(0)
    ranges = [(32, 127), (0xA1, 0x250), (0x391, 0x3C9), (0x410, 0x450), (0x4E00, 0x9FFF), (0x1F600, 0x1F640)]
    for _ in range(count):
        kinds = draw.choices([*ranges, " ", "  ", "\n", "\t", "##", "<tool>"], k=draw.randrange(1, 30))
        yield "".join(kind if isinstance(kind, str) else chr(draw.randrange(*kind)) for kind in kinds)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_of_model_gives_its_ids_on_real_and_on_strange_text(tmp_path, corpus, options):
    ours = train(tmp_path, corpus, **options)
    theirs = to_tokenizers(ours)
    lines = corpus.read_text(encoding="utf-8").split("\n")
    texts = ["\n".join(lines[first : first + 5]) for first in range(0, len(lines), 5)]
    wrong = [text for text in texts if ids_there(theirs, text) != ours.encode(text)]
    # segmentations of a unigram model that are equally likely
    assert len(wrong) <= (2 if options["model_type"] == "unigram" else 0)
    for text in strange_texts(300):
        assert ids_there(theirs, text) == ours.encode(text), repr(text)
    if options.get("byte_fallback"):
        text = "\n".join(lines[50:90]) + "世界 \U0001f600"
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))


@pytest.mark.parametrize("kind", ["shared", "bpe as llama's"])
def test_an_export_holds_a_tokenizer_that_transformers_reads(tmp_path, monkeypatch, corpus, kind):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if kind == "shared":
        ours = load_tokenizer(shared("tokenizers", "sentencepiece", "test_model.model"))
    else:
        ours = train(tmp_path, corpus, **KINDS[kind])
    model = tiny_model(
        "llama", torch.float32, size={"vocab_size": ours.vocab_size}, method="latent", num_thoughts=1
    )
    assert export_folder(model, tmp_path / "hf", ours) == ""
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    start = corpus.read_text(encoding="utf-8")[:20000]
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in "ABC")
    for text in [start, f"  Ünïcode,  {wide} 東京 \U0001f600 \n\n\t end ", "", " ", *strange_texts(50)]:
        assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == theirs.pad_token_id == ours.eod_id and theirs.eos_token == "</s>"
    again = load_tokenizer(tmp_path / "hf")
    assert again.encode(start) == ours.encode(start) and again.eod_id == ours.eod_id
    assert again.vocab_size == ours.vocab_size and (tmp_path / "hf" / "tokenizer.model").is_file()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"model_type": "char"}, "is a char model"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "would read 'Call me Ishmael"),
        ({"model_type": "bpe", "user_defined_symbols": ["<tool>"]}, "would read '<tool>' as other ids"),
    ],
    ids=["characters", "suffix", "symbols after a prefix"],
)
def test_what_cannot_be_converted_is_copied_and_said_in_one_sentence(
    tmp_path, monkeypatch, capsys, corpus, options, said
):
    if options["model_type"] == "char":
        options = {**options, "hard_vocab_limit": False}
    ours = train(tmp_path, corpus, **options)
    with pytest.raises(ConfigError, match=said):
        to_tokenizers(ours)
    plain, out = tmp_path / "plain", tmp_path / "hf"
    export_folder(tiny_model("llama", torch.float32, size={"vocab_size": ours.vocab_size}), plain)
    arguments = ("--model", plain, "--tokenizer", ours.path, "--output", out)
    assert launch("export", monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert said in printed and "tokenizer.model alone" in printed and printed.count("\n") == 1
    assert (out / "tokenizer.model").is_file() and not (out / "tokenizer.json").exists()
