"""dedup and decontaminate: what goes, what stays, and that nothing is lost."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_prep.__main__ import main
from data_prep.measure.synthetic import planted_documents
from tests.data_prep.folders import files

WORDS = [f"word{i}" for i in range(500)]


def text(seed: int, words: int = 200) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, size=words))


def write(path: Path, texts: list[str]) -> Path:
    path.write_text(
        "".join(
            json.dumps({"text": t, "meta": {"pile_set_name": "S"}, "id": i}) + "\n"
            for i, t in enumerate(texts)
        )
    )
    return path


def kept(folder: Path) -> list[dict]:
    found = []
    for path in sorted(folder.glob("part-*.jsonl.zst")):
        with zstandard.open(io.BytesIO(path.read_bytes()), "rt", encoding="utf-8") as file:
            found += [json.loads(line) for line in file]
    return found


def removed(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("unit_size", ["1G", "2K"])
def test_exact_duplicates_are_found_across_all_inputs(tmp_path: Path, unit_size: str) -> None:
    texts = [text(i) for i in range(10)]
    write(tmp_path / "a.jsonl", [*texts, texts[3]])
    write(tmp_path / "b.jsonl", [texts[7], "new", texts[3]])
    arguments = [
        "dedup",
        "--input",
        str(tmp_path / "*.jsonl"),
        "--output",
        str(tmp_path / "out"),
        "--exact-only",
    ]
    assert main([*arguments, "--unit-size", unit_size]) == 0
    assert [entry["text"] for entry in kept(tmp_path / "out")] == [*texts, "new"]
    assert [
        (Path(r["file"]).name, r["line"], Path(r["duplicate_of"]).name) for r in removed(tmp_path / "out")
    ] == [
        ("a.jsonl", 11, "a.jsonl:4"),
        ("b.jsonl", 1, "a.jsonl:8"),
        ("b.jsonl", 3, "a.jsonl:4"),
    ]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["records"], report["kept"], report["removed"]) == (14, {"S": 11}, {"S": 3})


def test_near_duplicates_go_and_different_documents_stay(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    texts = [text(i) for i in range(40)]
    changed = texts[5].split()
    changed[100] = "other"
    reshaped = texts[6].upper().replace(" ", ",\n")
    half = " ".join(texts[8].split()[:100]) + " " + text(99, 100)
    write(tmp_path / "a.jsonl", [*texts, " ".join(changed), reshaped, half])
    assert main(["dedup", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out")]) == 0
    assert [(r["line"], r["kind"], Path(r["duplicate_of"]).name) for r in removed(tmp_path / "out")] == [
        (41, "near", "a.jsonl:6"),
        (42, "near", "a.jsonl:7"),
    ]
    assert [entry["text"] for entry in kept(tmp_path / "out")] == [*texts, half]


def test_documents_that_share_thirteen_words_with_an_evaluation_file_are_removed(tmp_path: Path) -> None:
    question = text(1000, 30)
    short = text(1001, 9)
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text(json.dumps({"query": question, "choices": ["yes and no", short], "gold": 0}) + "\n")
    words = question.split()
    texts = [
        text(1),
        text(2) + " " + " ".join(words[5:18]).title() + ". " + text(3),  # thirteen words
        text(4) + " " + " ".join(words[5:17]) + " " + text(5),  # twelve
        text(6) + " " + short + " " + text(7),  # a short text as a whole
        "yes and no " + text(8),
    ]
    write(tmp_path / "a.jsonl", texts)
    arguments = [
        "--input",
        str(tmp_path / "a.jsonl"),
        "--evaluation",
        str(evaluation),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["decontaminate", *arguments]) == 0
    found = removed(tmp_path / "out")
    assert [(r["line"], r["evaluation"], r["shared"]) for r in found] == [
        (2, str(evaluation), " ".join(words[5:18])),
        (4, str(evaluation), short),
    ]
    assert [entry["text"] for entry in kept(tmp_path / "out")] == [texts[0], texts[2], texts[4]]
    assert main(["decontaminate", *arguments[:-1], str(tmp_path / "two"), "--shared-runs", "2"]) == 0
    assert not removed(tmp_path / "two")
    assert json.loads((tmp_path / "out/report.json").read_text())["evaluation_texts_too_short"] == 1


def test_bad_records_are_kept_apart_and_an_existing_output_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", ["one", "two"])
    path.write_bytes(path.read_bytes() + b"{broken\n")
    arguments = ["dedup", "--input", str(path), "--output", str(tmp_path / "out"), "--exact-only"]
    assert main(arguments) == 0
    entry = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert (entry["line"], entry["kind"], entry["raw"]) == (3, "broken JSON", "{broken")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert main(arguments) == 0
    assert "finished already" in capsys.readouterr().out
    assert main(arguments[:-1]) == 2
    assert "exists already and was made with threshold = None, now it is 0.8" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [text(i % 17) for i in range(60)])
    for workers in ("1", "2"):
        arguments = ["dedup", "--input", str(tmp_path / "a.jsonl"), "--unit-size", "20K", "--exact-only"]
        assert main([*arguments, "--workers", workers, "--output", str(tmp_path / workers)]) == 0
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("1", "2"))
    assert one == two


def test_documents_without_words_are_not_each_others_duplicates(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    texts = ["!" * i + "?" for i in range(10)] + ["...", "..."]
    write(tmp_path / "a.jsonl", texts)
    assert main(["dedup", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out")]) == 0
    assert [entry["text"] for entry in kept(tmp_path / "out")] == texts[:-1]
    assert [r["kind"] for r in removed(tmp_path / "out")] == ["exact"]


@pytest.mark.parametrize(
    ("similarity", "least", "most"), [(0.9, 1, 1), (0.85, 0.98, 1), (0.8, 0.9, 1), (0.6, 0, 0.02)]
)
def test_planted_near_duplicates_are_found(
    tmp_path: Path, similarity: float, least: float, most: float
) -> None:
    pytest.importorskip("rensa")
    write(tmp_path / "a.jsonl", [*planted_documents(200, (similarity,), 100)])
    assert main(["dedup", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out")]) == 0
    gone = removed(tmp_path / "out")
    assert all(r["line"] == int(r["duplicate_of"].rsplit(":", 1)[1]) + 1 for r in gone)
    assert least * 100 <= len(gone) <= most * 100


@pytest.mark.parametrize("partitions", [1, 7])
def test_large_groups_leave_their_first(
    tmp_path: Path, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rensa")
    monkeypatch.setattr("data_prep.overlap.duplicates._BYTES_A_PARTITION", 200_000 // partitions)
    monkeypatch.setattr("data_prep.overlap.duplicates._WINDOW", 50)
    monkeypatch.setattr("data_prep.overlap.fingerprints._RUN_KEYS", 100)
    base = text(1).split()
    versions = [" ".join([*base[:-1], f"end{i}"]) for i in range(100)]
    mixed = [t for i, version in enumerate(versions) for t in (version, text(1000 + i))]
    write(tmp_path / "a.jsonl", mixed)
    arguments = [
        "--input",
        str(tmp_path / "a.jsonl"),
        "--unit-size",
        "30K",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["dedup", *arguments, "--workers", "1"]) == 0
    assert [entry["id"] for entry in kept(tmp_path / "out")] == [0, *range(1, 200, 2)]
    assert {Path(r["duplicate_of"]).name for r in removed(tmp_path / "out")} == {"a.jsonl:1"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ["dedup", "decontaminate"])
def test_killed_at_any_moment_it_finishes_the_same_bytes(tmp_path: Path, command: str) -> None:
    texts = [text(i % 900, 300) for i in range(3000)]
    texts[5:3000:50] = [t.replace("word1 ", "other ", 1) for t in texts[5:3000:50]]
    write(tmp_path / "a.jsonl", texts)
    write(tmp_path / "eval.jsonl", [text(3, 30)])
    options = ["--input", str(tmp_path / "a.jsonl"), "--unit-size", "500K", "--workers", "2"]
    if command == "decontaminate":
        options += ["--evaluation", str(tmp_path / "eval.jsonl")]

    def start(output: Path) -> subprocess.Popen[bytes]:
        silent = subprocess.DEVNULL
        arguments = [sys.executable, "-m", "data_prep", command, *options, "--output", str(output)]
        return subprocess.Popen(arguments, stdout=silent, stderr=silent)

    started = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole = time.monotonic() - started
    rng, kills, number = random.Random(0), 0, 0
    while kills < 12:
        out = tmp_path / f"out{number}"
        while not out.exists() or (tmp_path / f".out{number}.partial").exists():
            process = start(out)
            try:
                process.wait(timeout=rng.uniform(0.2, 1.1) * whole if kills < 12 else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
            else:
                assert process.returncode == 0
        assert files(out) == files(tmp_path / "whole")
        number += 1


def test_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_prep.commands import dedup

    write(tmp_path / "a.jsonl", [text(i % 50) for i in range(60)])
    arguments = [
        "dedup",
        "--input",
        str(tmp_path / "a.jsonl"),
        "--unit-size",
        "10K",
        "--workers",
        "1",
        "--exact-only",
    ]
    assert main([*arguments, "--output", str(tmp_path / "whole")]) == 0
    there, done = dedup.fingerprint_unit, []

    def interrupted(*all_arguments: object) -> object:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return there(*all_arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dedup, "fingerprint_unit", interrupted)
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(dedup, "fingerprint_unit", lambda *every: done.append(1) or there(*every))
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert len(done) == -(-(tmp_path / "a.jsonl").stat().st_size // 10_000)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
