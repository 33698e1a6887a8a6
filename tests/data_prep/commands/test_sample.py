"""The sample corpus."""

from __future__ import annotations

import io
import json
from pathlib import Path

import zstandard

from data_prep.__main__ import main


def read(path: Path) -> list[dict]:
    with zstandard.open(io.BytesIO(path.read_bytes()), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_the_sample_is_real_text_with_held_out_documents_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["sample", "--output", str(tmp_path / name), "--size", "1M", "--held-out", "10%"]) == 0
    train, held = read(tmp_path / "one/train.jsonl.zst"), read(tmp_path / "one/validation.jsonl.zst")
    assert read(tmp_path / "two/train.jsonl.zst") == train
    assert read(tmp_path / "two/validation.jsonl.zst") == held
    names = [{entry["meta"]["name"] for entry in split} for split in (train, held)]
    assert names[1] and not names[0] & names[1]
    assert 0.9e6 < sum(len(entry["text"].encode()) for entry in train + held) < 1.6e6
    assert {entry["meta"]["pile_set_name"] for entry in train} >= {
        "Python Standard Library",
        "Python Language Reference",
    }


def test_a_sample_too_small_to_hold_documents_out_is_refused(tmp_path: Path) -> None:
    assert main(["sample", "--output", str(tmp_path / "s"), "--size", "1"]) == 2
    assert not (tmp_path / "s").exists()
