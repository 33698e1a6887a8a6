"""From text to text, and the command that does it."""

import io
import json
import warnings

import pytest
import torch

from latentpt.data.errors import DataError
from latentpt.data.tokenizer import load_tokenizer
from latentpt.generation.command import answer, converse, fitting
from latentpt.generation.decode import generate
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import GrowingText, Options, Writer, beginning_token
from tests.conftest import tiny_model
from tests.folders import BYTES_VOCAB, launch, shared, write_run, write_tokenizer


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


def test_a_stop_string_ends_the_text_and_is_never_heard_of(writer):
    free = writer.continue_ids([writer.encode("ab")], Options(40, Sampling(temperature=1.0)))[0]
    stop = free[11:14]
    heard = []
    options = Options(40, Sampling(temperature=1.0), stop=("never said", stop))
    text = writer.continue_ids([writer.encode("ab")], options, lambda _, piece: heard.append(piece))[0]
    assert text == free[: free.index(stop)] == "".join(heard)


@pytest.mark.parametrize("stop", [(), ("ÿx",), ("é",)])
def test_characters_and_stop_strings_come_out_whole(tmp_path, stop):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    said = "naïve café ☕ ÿ!"
    growing = GrowingText(tokenizer, [256], stop)
    pieces = [growing.add(token) for token in [*tokenizer.encode(said), 256]]
    text = "".join([*pieces, growing.rest()])
    assert text == growing.said == (said.split("é")[0] if stop == ("é",) else said)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_continuation_keeps_the_space_before_its_first_word(cut):
    tokenizer = load_tokenizer(shared("tokenizers", "sentencepiece", "test_model.model"))
    said = "I have been reading a great many books, he said."
    ids = tokenizer.encode(said)
    growing = GrowingText(tokenizer, [], after=ids[:cut])
    pieces = [growing.add(token) for token in ids[cut:]]
    assert tokenizer.decode(ids[:cut]) + "".join([*pieces, growing.rest()]) == said


def test_a_repetition_penalty_drives_out_what_was_said():
    model = bytes_model()
    repeated = generate(model, [[1, 1, 1]], 30)[0]
    varied = generate(model, [[1, 1, 1]], 30, Sampling(repetition_penalty=1e6))[0]
    assert len(set(varied)) == 30 and 1 not in varied and len(set(repeated)) < 30


def test_a_file_of_prompts_comes_back_line_by_line(tmp_path, monkeypatch, capsys):
    data = write_tokenizer(tmp_path / "data")
    model = bytes_model(method="latent", num_thoughts=1)
    run = write_run(tmp_path / "run", model, data)
    records = [{"prompt": "a long prompt", "id": 7}, {"prompt": "b", "seed": 5}, {"prompt": "cc"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    warm = ("--temperature", 1, "--max-new-tokens", 8, "--device", "cpu", "--seed", 9)
    for size in (1, 2):
        out = tmp_path / f"{size}.jsonl"
        arguments = ("--file", tmp_path / "in.jsonl", "--output", out, "--batch-size", size)
        assert launch("generate", monkeypatch, "--run", run, *arguments, *warm) == 0
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()
    written = [json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "text"} for line in written] == records
    alone = Writer(model, load_tokenizer(data)).write(["b"], 8, Sampling(temperature=1, seed=5))
    assert written[1]["text"] == alone[0]
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n{"text": "y"}\n')
    assert launch("generate", monkeypatch, "--run", run, "--file", tmp_path / "in.jsonl") == 2
    assert 'line 2 has no text under "prompt" and no "ids"' in capsys.readouterr().err


def test_a_conversation_goes_on_from_everything_said(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", bytes_model(), write_tokenizer(tmp_path / "data"))
    typed = iter(["hello", "", "/new", "x", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert launch("generate", monkeypatch, "--run", run, "--max-new-tokens", 6, "--device", "cpu") == 0
    out = capsys.readouterr().out
    writer = Writer(bytes_model(), load_tokenizer(tmp_path / "data"))
    first = writer.write(["hello"], 6, Sampling())[0]
    assert f"{first}\n" in out and f"{writer.write(['hello' + first], 6, Sampling())[0]}\n" in out


def test_ctrl_c_ends_an_answer_and_not_the_conversation(tmp_path, monkeypatch, capsys):
    writer = Writer(bytes_model(), load_tokenizer(write_tokenizer(tmp_path)))
    whole = writer.write(["hello"], 6, Sampling())[0]
    typed, asked = iter(["hello", "", "/quit"]), []
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    plain = writer.continue_ids

    def interrupted(ids, options, on_text, streams):
        asked.append(writer.tokenizer.decode(ids[0]))
        if len(asked) > 1:
            return plain(ids, options, on_text, streams)
        on_text(0, whole[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "continue_ids", interrupted)
    converse(writer, Options(6), top=2)
    assert asked == ["hello", "hello" + whole[:2]]
    assert "    0  'h'" in capsys.readouterr().out


def test_an_answer_leaves_half_of_the_positions_to_what_was_said(tmp_path, monkeypatch):
    writer = Writer(bytes_model(), load_tokenizer(write_tokenizer(tmp_path)))
    asked = []
    monkeypatch.setattr(writer, "continue_ids", lambda ids, options, *_, **__: asked.append((ids, options)))
    answer(writer, "a" * 100, Options(1000), 0)
    ((ids,), options) = asked[0]
    assert len(ids) == options.max_new_tokens == writer.model.config.max_positions // 2


def test_an_answer_goes_on_from_the_last_tokens_that_fit():
    assert (
        fitting([1, 2, 3], 2) == [2, 3] and fitting([1, 2, 3], 9) == [1, 2, 3] and fitting([1, 2], -5) == [2]
    )


def test_thoughts_are_shown_and_drafts_change_no_text(tmp_path, monkeypatch, capsys):
    model = bytes_model(method="latent", num_thoughts=1, visibility="stage_causal")
    run = write_run(tmp_path / "run", model, write_tokenizer(tmp_path / "data"))
    common = ("--run", run, "--prompt", "ab", "--max-new-tokens", 5, "--device", "cpu")
    assert launch("generate", monkeypatch, *common) == 0
    plain = capsys.readouterr().out
    assert launch("generate", monkeypatch, *common, "--draft", 3, "--show-thoughts", 2) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(plain) and "    0  'a'" in shown and "slot 1: " in shown
    (tmp_path / "in.jsonl").write_text('{"prompt": "ab"}\n')
    file = ("--run", run, "--file", tmp_path / "in.jsonl", "--max-new-tokens", 5, "--device", "cpu")
    assert launch("generate", monkeypatch, *file, "--show-thoughts", 2) == 0
    written = json.loads(capsys.readouterr().out)
    assert plain == f"ab{written['text']}\n"
    assert [(t["token"], t["slot"]) for t in written["thoughts"][:3]] == [("a", 0), ("a", 1), ("b", 0)]
    assert all(len(t["likeliest"]) == 2 and t["norm"] > 0 for t in written["thoughts"])


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
        (("--max-new-tokens", 0), "--max-new-tokens must be at least 1, got 0"),
        (("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--draft", -1), "--draft must be at least 0, got -1"),
        (("--show-thoughts", -1), "--show-thoughts must be at least 0, got -1"),
        (("--stop", ""), "--stop needs a text that is not empty"),
        (("--output", "x.jsonl"), "--output is where the results of --file go"),
        (("--draft", 2), "needs latent slots that are filled from the slot before"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, monkeypatch, capsys, wrong, said):
    run = write_run(tmp_path / "run", bytes_model(), write_tokenizer(tmp_path / "data"))
    assert launch("generate", monkeypatch, "--run", run, "--prompt", "x", *wrong) == 2
    out, error = capsys.readouterr()
    assert said in error and error.count("\n") == 1 and out == ""


# ------------------------------------------------------------------------------------------------ lengths and beginnings


def learned_run(tmp_path):
    """A run of a model with thoughts and 16 learned positions."""
    size = {"vocab_size": BYTES_VOCAB, "max_positions": 16}
    model = tiny_model("gpt2", torch.float32, size=size, method="latent", num_thoughts=1)
    return write_run(tmp_path / "run", model, write_tokenizer(tmp_path / "data"))


def test_thoughts_are_shown_in_a_conversation_longer_than_a_learned_table(tmp_path, monkeypatch, capsys):
    run = learned_run(tmp_path)
    typed = iter(["abcdefghijklmn", "opqrst", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    common = ("--run", run, "--max-new-tokens", 4, "--device", "cpu", "--show-thoughts", 2)
    assert launch("generate", monkeypatch, *common) == 0
    out = capsys.readouterr().out
    shown = [line.split()[:2] for line in out.splitlines() if line[:5].strip().isdecimal()]
    assert shown[0] == ["2", "'c'"] and ["13", "'n'"] in shown  # 12 of 14 are read, 4 answered
    assert "'t'" in [token for _, token in shown] and len({number for number, _ in shown}) == len(shown)


def test_a_text_that_fills_a_learned_table_shows_its_thoughts(tmp_path, monkeypatch, capsys):
    common = ("--run", learned_run(tmp_path), "--prompt", "abcdefghijkl", "--max-new-tokens", 5)
    assert launch("generate", monkeypatch, *common, "--device", "cpu", "--show-thoughts", 2) == 0
    assert "   15  " in capsys.readouterr().out


def test_going_beyond_the_positions_of_a_rotary_model_is_told_once(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", bytes_model(), write_tokenizer(tmp_path / "data"))
    common = ("--run", run, "--device", "cpu", "--prompt", "a" * 60, "--max-new-tokens")
    assert launch("generate", monkeypatch, *common, 5) == 0  # 64 are read, the last one is not
    assert capsys.readouterr().err == ""
    assert launch("generate", monkeypatch, *common, 9) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and "model.max_positions = 64" in error and error.count("\n") == 1
    writer = Writer(bytes_model(), load_tokenizer(tmp_path / "data"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            writer.write(["a" * 65, "b" * 70], 3, Sampling())
    assert len(told) == 1


def test_a_token_that_begins_texts_is_the_one_asked_for_or_the_one_the_tokenizer_names(tmp_path):
    plain = load_tokenizer(write_tokenizer(tmp_path))
    assert beginning_token(plain) == 256  # it names none, so what ends a document begins the next
    assert beginning_token(plain, "a") == plain.encode("a")[0] and beginning_token(plain, "12") == 12
    with pytest.raises(DataError, match="has no token '<s>'; its ids end at 256"):
        beginning_token(plain, "<s>")
    assert beginning_token(load_tokenizer(shared("tokenizers", "sentencepiece", "test_model.model"))) == 1


def test_texts_begin_with_the_token_asked_for_and_ids_are_taken_as_they_are(tmp_path, monkeypatch, capsys):
    data = write_tokenizer(tmp_path / "data")
    model = bytes_model(method="latent", num_thoughts=1)
    run = write_run(tmp_path / "run", model, data)
    tokenizer = load_tokenizer(data)
    ids = [256, *tokenizer.encode("ab")]
    expected = Writer(model, tokenizer).continue_ids([ids], Options(6))[0]
    common = ("--run", run, "--max-new-tokens", 6, "--device", "cpu")
    assert launch("generate", monkeypatch, *common, "--prompt", "ab", "--bos") == 0
    assert capsys.readouterr().out == f"ab{expected}\n"
    assert (
        launch("generate", monkeypatch, *common, "--ids", ",".join(map(str, ids)), "--show-thoughts", 1) == 0
    )
    out = capsys.readouterr().out
    assert out.startswith(f"<|endoftext|>ab{expected}\n") and "    0  '<|endoftext|>'" in out
    (tmp_path / "in.jsonl").write_text(json.dumps({"ids": ids}) + '\n{"prompt": "ab"}\n')
    assert launch("generate", monkeypatch, *common, "--file", tmp_path / "in.jsonl", "--bos") == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in written] == [expected, expected]
    for wrong in ("1,x", "257", ","):
        assert launch("generate", monkeypatch, *common, "--ids", wrong) == 2
        assert f"--ids {wrong}: ids are one or more whole numbers from 0 to 256" in capsys.readouterr().err


def test_what_is_forgotten_leaves_the_token_that_begins_texts():
    assert fitting([9, 1, 2, 3], 3, 9) == [9, 2, 3] and fitting([9, 1], 2, 9) == [9, 1]


def test_piped_text_does_not_end_in_the_newline_of_its_command(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", bytes_model(), write_tokenizer(tmp_path / "data"))
    common = ("--run", run, "--max-new-tokens", 4, "--device", "cpu")
    assert launch("generate", monkeypatch, *common, "--prompt", "one\ntwo") == 0
    expected = capsys.readouterr().out
    for piped in ("one\ntwo\n", "one\ntwo"):
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        assert launch("generate", monkeypatch, *common) == 0
        assert capsys.readouterr().out == expected
