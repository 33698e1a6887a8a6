"""Questions made and read, rows laid out, latents inserted, answers read."""

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpt.config import ConfigError, build, load_config
from latentpt.data.errors import DataError
from latentpt.data.tokenizer import load_tokenizer
from latentpt.finetuning.answers import is_right
from latentpt.finetuning.building import (
    BuildConfig,
    build_examples,
    shortcut,
    write_sentence_tokenizer,
    write_symbol_tokenizer,
)
from latentpt.finetuning.coconut import Markers, coconut_prompt, coconut_row, drawn_stage, removed_and_latents
from latentpt.finetuning.config import CoconutConfig, FinetuneConfig, LtStage, load_finetune_config
from latentpt.finetuning.examples import Example, read_examples
from latentpt.finetuning.graphs import distances, draw_graph, farther_is_right, in_sentences, in_symbols
from latentpt.finetuning.lt_tuning import insertions, latent_row, plain_row
from latentpt.finetuning.preparing import prepare
from latentpt.finetuning.rows import IGNORE, Pieces, coconut_wording, encode_examples
from latentpt.finetuning.stages import Plan, Stage, planned_stages
from latentpt.finetuning.suite import SuiteConfig
from tests.finetuning.small_reasoning import sums, tiny

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "reasoning"
MARKS = Markers(7, 8, 9)


# ------------------------------------------------------------------------------------------------------ graphs


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), matched=st.booleans())
def test_the_answer_is_reached_by_the_asked_entity_and_the_other_option_is_not(seed, matched):
    graph = draw_graph(random.Random(seed), matched=matched)
    reached = distances(graph.edges, [graph.root])
    assert graph.other not in reached
    assert reached[graph.target] == len(graph.path) - 1
    assert all(edge in graph.edges for edge in zip(graph.path, graph.path[1:], strict=False))


def test_depth_gives_the_answer_away_as_in_the_released_rows_unless_options_are_matched():
    rows = [draw_graph(random.Random(seed)) for seed in range(300)]
    assert 0.84 < sum(map(farther_is_right, rows)) / len(rows) < 0.97
    matched = [draw_graph(random.Random(seed), matched=True) for seed in range(60)]
    assert {farther_is_right(graph) for graph in matched} == {0.5}
    assert 0.25 < sum(graph.root == 0 for graph in matched) / len(matched) < 0.75


def test_what_is_built_tells_what_depth_alone_scores():
    config = BuildConfig(
        task="symbolic_prosqa", output="", rows=(1, 1, 40), nodes=10, hops=(2, 2), symbols=12
    )
    assert shortcut(config) == 0.5
    assert shortcut(config.model_copy(update={"matched": False})) > 0.6
    assert shortcut(config.model_copy(update={"task": "arithmetic"})) is None


def test_sentences_and_symbols_tell_the_same_graph():
    graph = draw_graph(random.Random(3), matched=True)
    words, symbols = (write(random.Random(0)) for write in (
        lambda rng: in_sentences(rng, graph), lambda rng: in_symbols(rng, graph, 30)
    ))  # fmt: skip
    assert len(words.steps) == len(symbols.steps) == len(graph.path) - 1
    assert words.question.count(" is a ") == symbols.question.count("|") + 1 == len(graph.edges)
    assert words.answer.split()[0] in words.question.split("Is ")[-1]
    assert symbols.answer in symbols.question.split("?")[1].split("@")[0].split()


def test_rows_depend_on_seed_part_and_index_alone():
    config = BuildConfig(task="symbolic_prosqa", output="", nodes=10, hops=(2, 2), symbols=12)
    assert build_examples(config, "train", 4)[:2] == build_examples(config, "train", 2)
    assert build_examples(config, "train", 2) != build_examples(config, "test", 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hops": (4, 3)}, r"hops = \[4, 3\] must be the least and the most"),
        ({"nodes": 31}, "the nearest value that works is 30"),
        ({"rows": (0, 1, 1)}, "a whole number of at least 1.*got 0"),
    ],
)
def test_data_sets_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(BuildConfig, {"task": "symbolic_prosqa", "output": "x", **values})


def test_a_graph_that_does_not_exist_is_not_searched_for_ever(monkeypatch):
    monkeypatch.setattr("latentpt.finetuning.graphs.DRAWS", 50)
    with pytest.raises(ConfigError, match="none of 50 graphs of 3 nodes has an answer 9 to 9 hops away"):
        draw_graph(random.Random(0), 3, hops=(9, 9))


def test_sums_are_right():
    config = BuildConfig(task="arithmetic", output="", hops=(2, 4), symbols=10)
    for example in build_examples(config, "train", 50):
        first, *rest = example.question.split()
        value = eval(first + "".join(rest))
        assert str(value % 10) == example.answer
        assert example.steps[-1].endswith(f"= {example.answer}")


# ------------------------------------------------------------------------------------------------------ readers


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not at hand")
@pytest.mark.parametrize(
    ("file", "rows", "steps"),
    [
        ("prosqa/test.json", 500, (3, 6)),
        ("prosqa/matched_test.json.gz", 1000, (3, 5)),
        ("prosqa/train_generated.jsonl.gz", 17_886, (3, 6)),
        ("prontoqa/test.json", 800, (6, 6)),
        ("gsm8k/gsm8k_eq_train_minus_valid.json.gz", 6_973, (0, 9)),
        ("gsm8k/gsm8k_nl_test.json", 1_319, (2, 11)),
    ],
)
def test_released_files_are_read(file, rows, steps):
    found = read_examples(SHARED / file)
    assert len(found) == rows
    counts = [len(example.steps) for example in found]
    assert (min(counts), max(counts)) == steps


def test_all_published_forms_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("How many?||<<1+1=2>> <<2*2=4>> #### 4\n")
    assert read_examples(path) == [Example("How many?", ["<<1+1=2>>", "<<2*2=4>>"], "4")]
    record = {"question": "q", "answer": "Half is 24/2=<<24/2=12>>12.\nSo 12.\n#### 12"}
    path.write_text(json.dumps(record))
    assert read_examples(path) == [Example("q", ["Half is 24/2=12.", "So 12."], "12")]
    packed = tmp_path / "b.json.gz"
    packed.write_bytes(
        gzip.compress(json.dumps([{"question": "q", "steps": ["s"], "answer": "a", "more": 1}]).encode())
    )
    assert read_examples(packed) == [Example("q", ["s"], "a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no questions"),
        ("[{]", "is not valid JSON"),
        ('{"question": "q"}', "record 1 is not of the form"),
        ('{"question": "q", "steps": [], "answer": "a"}\n{', "line 2 is not valid JSON"),
    ],
)
def test_broken_files_are_refused_by_name_and_record(content, message, tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"questions.json.*{message}|{message}"):
        read_examples(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no such file of questions"):
        read_examples(tmp_path / "nowhere.json")


# ------------------------------------------------------------------------------------------------------ rows


class Letters:
    """A tokenizer of one id a character that reads "ab" as one: pieces that part it do not concatenate."""

    def encode(self, text):
        return [ord(c) for c in text.replace("ab", "\x00")]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def encoded(*examples, max_length=100, needs_steps=True):
    return encode_examples(
        examples,
        Letters(),
        1,
        coconut_wording,
        ["<m>"],
        lambda p: len(plain_row(p).ids),
        max_length,
        needs_steps,
        "file",
    )


def test_rows_that_cannot_be_used_are_counted_with_the_first_of_each_kind():
    good = Example("q", ["s"], "a")
    odd = Letters()
    odd_examples = [
        good,
        Example("q", [], "a"),
        Example("<m>", ["s"], "a"),
        Example("q" * 200, ["s"], "a"),
        Example("r", [], "b"),
    ]
    rows, left_out = encoded(*odd_examples)
    assert len(rows) == 1
    lines = left_out.lines("file", 5)
    assert lines[0] == "file: 2 of 5 rows left out: no steps; the first: 'q'"
    assert len(lines) == 3 and "<m> is part of the text" in lines[1] and "longer than" in lines[2]
    assert odd.encode("xab") == [120, 0]


def test_pieces_that_do_not_concatenate_are_left_out(monkeypatch):
    split = Letters()
    monkeypatch.setattr(
        split, "encode_batch", lambda texts: [[0, *split.encode(text)] for text in texts]
    )  # a dummy prefix
    with pytest.raises(DataError, match="do not concatenate to the whole under this tokenizer"):
        encode_examples(
            [Example("q", ["s"], "a")], split, 1, coconut_wording, [], lambda p: 0, 9, True, "file"
        )


PIECES = Pieces([1, 2], [[11, 12], [13], [14]], [20, 99], "x")


@pytest.mark.parametrize(
    ("stage", "ids"),
    [
        (0, [1, 2, 7, 8, 11, 12, 13, 14, 20, 99]),
        (1, [1, 2, 7, 9, 9, 8, 13, 14, 20, 99]),
        (3, [1, 2, 7, 9, 9, 9, 9, 9, 9, 8, 20, 99]),
        (5, [1, 2, 7, 9, 9, 9, 9, 9, 9, 9, 9, 8, 20, 99]),
    ],
)
def test_steps_give_way_to_latents_stage_by_stage(stage, ids):
    rules = CoconutConfig(c_thought=2, max_latent_stage=4)
    row = coconut_row(PIECES, "coconut", rules, stage, MARKS)
    assert row.ids == ids
    given = ids.index(8) + 1
    assert row.labels == [IGNORE] * given + ids[given:]
    assert coconut_prompt(PIECES, "coconut", rules, stage, MARKS) == ids[:given]


@pytest.mark.parametrize(
    ("mode", "ids"),
    [
        ("cot", [1, 2, 11, 12, 13, 14, 20, 99]),
        ("no_cot", [1, 2, 20, 99]),
        ("no_thoughts", [1, 2, 14, 20, 99]),
    ],
)
def test_controls_have_no_markers(mode, ids):
    row = coconut_row(PIECES, mode, CoconutConfig(), 2, MARKS)
    assert row.ids == ids and row.labels == [IGNORE, IGNORE, *ids[2:]]


def test_the_number_of_latents_shows_the_number_of_steps_only_where_asked():
    padded, shown = (
        CoconutConfig(max_latent_stage=6),
        CoconutConfig(max_latent_stage=6, pad_latent_to_max=False),
    )
    assert [removed_and_latents(padded, stage, 3) for stage in (2, 4, 7)] == [(2, 2), (3, 4), (3, 6)]
    assert [removed_and_latents(shown, stage, 3) for stage in (2, 4, 7)] == [(2, 2), (3, 3), (3, 3)]


def test_stages_are_drawn_from_seed_epoch_and_row():
    rules = CoconutConfig(uniform_prob=0.5)
    drawn = [drawn_stage(rules, 5, 3, 0, 1, row) for row in range(200)]
    assert drawn == [drawn_stage(rules, 5, 3, 0, 1, row) for row in range(200)]
    assert 70 < sum(stage == 5 for stage in drawn) < 130 and set(drawn) == {0, 1, 2, 3, 5}
    assert drawn_stage(CoconutConfig(), 5, 3, 0, 1, 0) == 5


def test_latents_go_before_unsure_tokens():
    stage = LtStage(epochs=1, fill="hidden", tau=0.5, most=1)
    counts = insertions([0.9, 0.1, 0.6, 0.4, 0.9, 0.9], stage, 0, 0, 2, room=9)
    assert counts == [0, 1, 0, 1, 0, 0]
    row = latent_row(PIECES, counts, 9)
    assert row.ids == [1, 2, 11, 9, 12, 13, 9, 14, 20, 99]
    assert row.labels == [IGNORE, IGNORE, 11, 9, 12, 13, 9, 14, 20, 99]


@settings(max_examples=50, deadline=None)
@given(
    p=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    sites=st.none() | st.integers(0, 5) | st.floats(0.1, 0.9),
    second=st.sampled_from([0.0, 0.5]),
    room=st.integers(0, 20),
    row=st.integers(0, 99),
)
def test_insertion_keeps_to_candidates_sites_and_room(p, sites, second, room, row):
    stage = LtStage(epochs=1, fill="hidden", tau=0.5, sites=sites, second=second, most=3)
    counts = insertions(p, stage, 0, row, 2, room)
    assert counts == insertions(p, stage, 0, row, 2, room)
    candidates = sum(x < 0.5 for x in p)
    chosen = (
        candidates
        if sites is None
        else min(candidates, int(candidates * sites) if 0 < sites < 1 else int(sites))
    )
    assert sum(count > 0 for count in counts) <= chosen
    assert sum(counts) <= room and max(counts) <= (2 if second else 3)
    assert all(x < 0.5 for x, count in zip(p, counts, strict=True) if count)


# ------------------------------------------------------------------------------------------------------ stages


def planned(mode, **sections):
    values = {"mode": mode, "start": {"model": "x"}, "data": {"train": "a", "validation": "b"}, **sections}
    return planned_stages(build(FinetuneConfig, values))


def test_the_curriculum_of_the_published_prosqa_run():
    stages = planned("coconut")
    assert [(stage.number, stage.epochs) for stage in stages] == [(number, 5) for number in range(10)]
    assert [stage.reset for stage in stages] == [False] + [True] * 9


def test_skipped_epochs_no_curriculum_and_resets():
    skipped = planned(
        "coconut", coconut={"epochs": 25, "epochs_per_stage": 3, "skip_epochs": 3, "max_latent_stage": 3}
    )
    assert [(stage.number, stage.epochs) for stage in skipped][:2] == [(1, 3), (2, 3)]
    assert sum(stage.epochs for stage in skipped) == 22
    flat = planned("coconut", coconut={"epochs": 9, "epochs_per_stage": 3, "curriculum": False})
    assert [(stage.number, stage.epochs) for stage in flat] == [(2, 9)]
    every = planned("coconut", coconut={"epochs": 4, "epochs_per_stage": 2, "reset": "epoch"})
    assert [(stage.number, stage.epochs, stage.reset) for stage in every] == [
        (0, 1, False),
        (0, 1, True),
        (1, 1, True),
        (1, 1, True),
    ]


def test_lt_tuning_has_three_stages_in_both_presets():
    assert [(s.epochs, s.fill) for s in planned("lt_tuning")] == [(1, None), (2, "hidden"), (7, "fusion")]
    released = planned("lt_tuning", lt={"preset": "released"})
    assert [s.insertion and s.insertion.sites for s in released] == [None, 10, 16]


def prepared_recipe(tmp_path, **lt):
    """The recipe that a configuration of LT-Tuning comes to."""
    data = sums(tmp_path)
    return prepare(tiny(tmp_path / "run", data, "lt_tuning", lt={"stages": None, "text": None, **lt})).recipe


def test_presets_differ_where_paper_and_released_code_do(tmp_path):
    paper, released = (prepared_recipe(tmp_path, preset=name) for name in ("paper", "released"))
    assert (paper.layer, paper.top_p, paper.inclusive) == (-2, 0.8, True)
    assert (released.layer, released.top_p, released.inclusive) == (-1, 0.9, False)


def test_every_step_has_its_moment():
    plan = Plan([Stage(0, 2, 4), Stage(1, 1, 3)], rows=10)
    moments = [plan.at(step) for step in range(plan.steps)]
    assert plan.steps == 2 * 3 + 4 and plan.epochs == 3
    assert [moment.epoch for moment in moments] == [0] * 3 + [1] * 3 + [2] * 4
    assert [moment.step_in_stage for moment in moments] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert [step for step, moment in enumerate(moments) if moment.ends_epoch] == [2, 5, 9]
    assert [step for step, moment in enumerate(moments) if moment.ends_stage] == [5, 9]


# ------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("text", "gold", "how", "right"),
    [
        ("step\n### 1,200", "1200", "after_hash", True),
        ("### Bob is a yumpus.", "Bob is a yumpus.", "after_hash", True),
        ("### 12", "12.0", "after_hash", False),
        ("The final answer is:\n### 1,200.0", "1200", "last_number", True),
        ("so 3 and -4", "-4", "last_number", True),
        ("nothing", "4", "last_number", False),
    ],
)
def test_answers_are_read_as_published(text, gold, how, right):
    assert is_right(text, gold, how) is right


def test_symbols_are_single_tokens_and_pieces_concatenate(tmp_path):
    write_symbol_tokenizer(tmp_path / "tokenizer.json", 12)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eod_id == 0
    assert tokenizer.decode(tokenizer.encode("10 3 | 3 4 ? 4 7 @ 10\n### 4")).split() == [
        "10",
        "3",
        "|",
        "3",
        "4",
        "?",
        "4",
        "7",
        "@",
        "10",
        "###",
        "4",
    ]
    assert tokenizer.encode("3 4\n") + tokenizer.encode("### 4") == tokenizer.encode("3 4\n### 4")


def test_sentences_are_two_tokens_each_and_pieces_concatenate(tmp_path):
    write_sentence_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path)
    pieces = ["Bob is a lempus. Every lempus is a yumpus. Is Bob a yumpus or hilpus?\n", "Bob is a lempus.\n", "### Bob is a yumpus."]  # fmt: skip
    ids = [tokenizer.encode(piece) for piece in pieces]
    assert [len(some) for some in ids] == [10, 3, 3]
    assert [token for some in ids for token in some] == tokenizer.encode("".join(pieces))
    assert [tokenizer.decode(some) for some in ids[1:]] == pieces[1:]
    assert tokenizer.decode(ids[0]) == pieces[0].replace(". ", ".").replace("Is Bob", "IsBob")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not at hand")
@pytest.mark.parametrize("file", ["test.json", "matched_test.json.gz"])
def test_the_sentences_of_the_released_rows_have_no_unknown_words(file, tmp_path):
    write_sentence_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path)
    for example in read_examples(SHARED / "prosqa" / file):
        question, steps, answer = coconut_wording(example)
        assert tokenizer.token_id("<unk>") not in tokenizer.encode(question)
        for text in (*steps, answer):
            assert tokenizer.decode(tokenizer.encode(text)) == text


# ------------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "finetune").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_configurations_say_what_can_be_done(path):
    if "arms" not in path.read_text():
        assert planned_stages(load_finetune_config(path))
        return
    suite = load_config(SuiteConfig, path)
    for name in suite.arms:
        assert planned_stages(suite.run_config(name, suite.seeds[0]))
