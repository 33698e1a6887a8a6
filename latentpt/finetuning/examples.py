"""Questions with their chains of thought: reading files, making data sets, the tokenizer of the symbolic ones.

A file is a JSON list or JSON lines of {"question": text, "steps": [text, ..], "answer": text}, .gz or not; other keys are
left alone. ProsQA, ProntoQA and GSM8K as Coconut uses them have this form; GSM8K as published ({"question", "answer":
"chain #### number"}) and the lines "question||step step #### answer" of the augmented GSM8K are read as well.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from latentpt.data.errors import DataError


class Example(NamedTuple):
    """One question."""

    question: str
    steps: list[str]
    """The chain of thought; may be empty."""
    answer: str


def read_examples(path: str | Path, limit: int | None = None) -> list[Example]:
    """The first `limit` examples of a file (None: all); raises DataError naming the file and the record."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of questions")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    found: list[Example] = []
    for number, record in enumerate(_records(path, text), start=1):
        if limit is not None and len(found) >= limit:
            break
        found.append(_example(path, number, record))
    if not found:
        raise DataError(f"{path}: holds no questions")
    return found


def _records(path: Path, text: str) -> Iterator[Any]:
    """JSON values of a list or of lines, or lines of the augmented GSM8K as texts."""
    if text.lstrip().startswith("["):
        try:
            yield from json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: is not valid JSON ({error})") from None
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if "||" in line and not line.lstrip().startswith("{"):
            yield line
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {number} is not valid JSON ({error})") from None


def _example(path: Path, number: int, record: Any) -> Example:
    if isinstance(record, str):
        question, _, rest = record.partition("||")
        chain, _, answer = rest.partition("#")
        return Example(question, chain.split(), answer.lstrip("#").strip())
    if isinstance(record, dict) and "steps" not in record and "####" in str(record.get("answer")):
        chain, _, answer = record["answer"].partition("####")
        lines = [re.sub(r"<<.*?>>", "", line).strip() for line in chain.splitlines()]
        record = {**record, "steps": [line for line in lines if line], "answer": answer.strip()}
    if isinstance(record, dict):
        parts = record.get("question"), record.get("steps"), record.get("answer")
        if isinstance(parts[0], str) and isinstance(parts[1], list) and isinstance(parts[2], str):
            steps = [step for step in parts[1] if isinstance(step, str) and step.strip()]
            return Example(parts[0], steps, parts[2])
    raise DataError(
        f'{path}: record {number} is not of the form {{"question": text, "steps": [text, ..], "answer": text}}'
    )


def write_examples(path: Path, examples: list[Example]) -> None:
    """Write JSON lines, compressed if the name ends in .gz."""
    from latentpt.files import write_bytes

    content = "".join(
        json.dumps(example._asdict(), ensure_ascii=False) + "\n" for example in examples
    ).encode()
    write_bytes(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
