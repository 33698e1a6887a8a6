"""tokenize: whole, in order, whatever the number of workers, tasks and starts."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from data_prep.__main__ import main
from latentpt.data.batches import TokenDataset
from latentpt.data.errors import DataError
from latentpt.data.manifest import read_manifest
from tests.data_prep.folders import files, lines, texts, tokenize

SHARED = Path(os.environ.get("LATENTPT_SHARED", Path(__file__).parents[4] / "shared"))


@pytest.mark.parametrize("kind", ["json", "model"])
def test_documents_come_out_as_they_went_in(
    tmp_path: Path, tokenizers: dict[str, Path], documents: list[str], kind: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents[:100]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(documents[100:200])))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines(documents[200:])))
    out = tmp_path / "out"
    assert tokenize(tokenizers[kind], out, "--input", tmp_path / "*.jsonl*", "--shard-tokens", "2K") == 0
    assert texts(out) == documents
    manifest = read_manifest(out)
    assert manifest.records_in == manifest.counts.documents == 300
    assert manifest.counts.text_bytes == sum(len(d.encode()) for d in documents)
    assert len(manifest.shards) > 3
    assert max(info.tokens for info in manifest.shards) <= 2000
    assert TokenDataset(out, 64).num_tokens == manifest.counts.tokens
    assert not (out / ".work").exists()
    assert main(["verify", str(out)]) == 0


def test_a_special_token_written_in_a_text_is_text(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["one<|endoftext|>two", "three"]))
    assert tokenize(tokenizer, tmp_path / "out", "--input", tmp_path / "a.jsonl") == 0
    assert texts(tmp_path / "out") == ["one<|endoftext|>two", "three"]
    assert main(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_workers_or_tasks(
    tmp_path: Path, tokenizer: Path, documents: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents * 20) + b"{broken\n" + lines(documents))
    options = ("--input", tmp_path / "a.jsonl", "--name", "t", "--unit-size", "300K", "--shard-tokens", "50K")
    assert tokenize(tokenizer, tmp_path / "one", *options) == 0
    assert tokenize(tokenizer, tmp_path / "three", *options, "--workers", "3") == 0
    for task in ("2/3", "0/3", "1/3"):
        assert not (tmp_path / "tasks/manifest.json").exists()
        assert tokenize(tokenizer, tmp_path / "tasks", *options, "--task", task) == 0
    assert files(tmp_path / "one") == files(tmp_path / "three") == files(tmp_path / "tasks")
    broken = json.loads((tmp_path / "one/quarantine.jsonl").read_text())
    assert (broken["line"], broken["raw"]) == (6001, "{broken")  # the line of the file, not of the unit


def test_sources_and_held_out_documents_have_folders_of_their_own(
    tmp_path: Path, tokenizer: Path, documents: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents[:150], "Wiki (en)") + lines(documents[150:], "Code"))
    options = (
        "--input",
        tmp_path / "a.jsonl",
        "--split-by-source",
        "--held-out",
        "20%",
        "--shard-tokens",
        "1K",
    )
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    found = {
        name: texts(tmp_path / "out" / name)
        for name in json.loads((tmp_path / "out/folders.json").read_text())["folders"]
    }
    assert sorted(found) == ["train/Code", "train/Wiki-en", "validation/Code", "validation/Wiki-en"]
    assert sorted(found["train/Wiki-en"] + found["validation/Wiki-en"]) == sorted(documents[:150])
    assert sorted(found["train/Code"] + found["validation/Code"]) == sorted(documents[150:])
    assert 30 <= len(found["validation/Wiki-en"]) + len(found["validation/Code"]) <= 90
    assert TokenDataset(tmp_path / "out/train", 64).num_samples > 0
    # the split goes by content: the same document is on the same side in another corpus
    (tmp_path / "b.jsonl").write_bytes(lines(documents[100:200]))
    assert tokenize(tokenizer, tmp_path / "other", "--input", tmp_path / "b.jsonl", "--held-out", "20%") == 0
    held = {text for name, found_ in found.items() if name.startswith("validation") for text in found_}
    assert texts(tmp_path / "other/validation") == [text for text in documents[100:200] if text in held]


def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    cases = {
        ("--input", str(tmp_path / "none*.jsonl")): "matches no input file",
        ("--input", __file__): "is of no known input format",
        ("--input", str(tmp_path / "empty.jsonl")): "empty.jsonl: the input holds no document",
        ("--input", str(tmp_path / "empty.jsonl"), "--eod", "<nope>"): "has no token '<nope>'",
        (
            "--input",
            str(tmp_path / "empty.jsonl"),
            "--tokenizer",
            str(tmp_path / "t.json"),
        ): "no such tokenizer file",
    }
    for arguments, message in cases.items():
        assert tokenize(tokenizer, tmp_path / "out", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_another_tokenization_is_not_mixed_in_and_a_finished_one_is_left_alone(
    tmp_path: Path, tokenizer: Path, documents: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents))
    options = ("--input", tmp_path / "a.jsonl")
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    before = files(tmp_path / "out")
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    assert "finished already" in capsys.readouterr().out
    assert tokenize(tokenizer, tmp_path / "out", *options, "--shard-tokens", "1K") == 2
    assert "was made with shard_tokens = 500000000, now it is 1000" in capsys.readouterr().err
    assert files(tmp_path / "out") == before


def test_a_dry_run_writes_nothing(
    tmp_path: Path, tokenizer: Path, documents: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents))
    options = ("--input", tmp_path / "a.jsonl", "--unit-size", "50K", "--dry-run")
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    assert "in 3 units of work" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_finished_shards_are_not_written_again(
    tmp_path: Path, tokenizer: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents))
    options = ("--input", tmp_path / "a.jsonl", "--name", "t", "--shard-tokens", "1K", "--split-by-source")
    assert tokenize(tokenizer, tmp_path / "whole", *options) == 0
    from data_prep.tokens.unit_writer import ShardWriter, _Route

    closes: list[str] = []
    close = _Route.close

    def stop_at_fifth(route: _Route) -> None:
        close(route)
        closes.append("")
        if len(closes) == 5:
            raise DataError("stopped")

    monkeypatch.setattr(_Route, "close", stop_at_fifth)
    assert tokenize(tokenizer, tmp_path / "out", *options) == 2
    monkeypatch.undo()
    written: list[str] = []
    create = ShardWriter.__init__

    def watched(writer: ShardWriter, prefix: Path, dtype: object) -> None:
        written.append(Path(prefix).name)
        create(writer, prefix, dtype)

    monkeypatch.setattr(ShardWriter, "__init__", watched)
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    assert written[0] == "00005"
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_moment_it_finishes_the_same_bytes(
    tmp_path: Path, tokenizer: Path, documents: list[str]
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(lines(documents * 8) + b"{broken\n")
    options = [
        "--input",
        str(tmp_path / "*.jsonl"),
        "--name",
        "t",
        "--unit-size",
        "1M",
        "--shard-tokens",
        "50K",
    ]
    command = [sys.executable, "-m", "data_prep", "tokenize", "--tokenizer", str(tokenizer), *options]

    def start(output: Path) -> subprocess.Popen[bytes]:
        silent = subprocess.DEVNULL
        return subprocess.Popen([*command, "--output", str(output)], stdout=silent, stderr=silent)

    started = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole = time.monotonic() - started
    rng, kills, number = random.Random(0), 0, 0
    while kills < 20:
        out = tmp_path / f"out{number}"
        while not (out / "manifest.json").is_file() or (out / ".work").exists():
            process = start(out)
            try:
                process.wait(timeout=rng.uniform(0.2, 1.1) * whole if kills < 20 else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
            else:
                assert process.returncode == 0
        assert files(out) == files(tmp_path / "whole")
        number += 1


@pytest.mark.slow
def test_workers_leave_when_their_parent_is_killed(
    tmp_path: Path, tokenizer: Path, documents: list[str]
) -> None:
    psutil = pytest.importorskip("psutil")
    (tmp_path / "a.jsonl").write_bytes(lines(documents * 200))
    command = [sys.executable, "-m", "data_prep", "tokenize", "--tokenizer", str(tokenizer), "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out")]
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("*.bin.*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert len(children) >= 2 and not alive


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "data/corpus").is_dir() or "CI" not in os.environ,
    reason="needs the shared corpus and a minute of two cores: CI runs it",
)
def test_a_real_corpus_has_the_counts_that_the_documentation_states(tmp_path: Path) -> None:
    tokenizer = SHARED / "data/tokenizers/gpt-neox-20b/tokenizer.json"
    options = ("--input", SHARED / "data/corpus", "--workers", "2", "--max-bad", "0%")
    assert tokenize(tokenizer, tmp_path / "out", *options) == 0
    counts = read_manifest(tmp_path / "out").counts
    assert (counts.documents, counts.tokens, counts.text_bytes) == (3541, 20_872_697, 82_521_835)
    assert main(["verify", str(tmp_path / "out")]) == 0
