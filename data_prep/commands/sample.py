"""sample: a small real corpus from what every Python installation has, in the Pile's form.

Documents are the standard library's modules, the language reference's topics, the docstrings of modules written in C
(which have no source to read) and licence texts. The same installation gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import io
import json
import sys
import sysconfig
import warnings
import zipfile
from collections.abc import Iterator
from importlib import machinery, util
from pathlib import Path

import zstandard

from data_prep.commands.arguments import amount, share
from latentpt.data.errors import DataError

# Tables, tests and installed packages rather than the library's own prose and code.
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "encodings",
    "pydoc_data",
    "__pycache__",
    "lib2to3",
}
_SHORTEST = 200  # characters

Entry = tuple[str, str, str]
"""Source, name and text of a document."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--output", required=True, help="folder for train.jsonl.zst and validation.jsonl.zst")
    parser.add_argument(
        "--size", type=amount, default="6M", help="bytes of text to take, about (default: 6M)"
    )
    parser.add_argument(
        "--held-out", type=share, default=0.05, help="share of documents held out (default: 5%%)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    counts = write_sample(Path(arguments.output), arguments.size, arguments.held_out)
    for name, (documents, size) in counts.items():
        print(f"{name}: {documents} documents, {size / 1e6:.2f} MB of text")


def write_sample(output: Path, size: int, held_out: float) -> dict[str, tuple[int, int]]:
    """Write train.jsonl.zst and validation.jsonl.zst into `output`; return documents and bytes of text of each.

    Documents are taken in the order of the hash of their names until `size` bytes are reached.
    """
    split: dict[str, list[Entry]] = {"train": [], "validation": []}
    taken = 0
    seen: set[str] = set()
    for entry in sorted(documents(), key=lambda entry: _hash("order", *entry[:2])):
        source, name, text = entry
        if taken >= size or _hash(text) in seen:
            continue
        seen.add(_hash(text))
        taken += len(text.encode())
        held = int(_hash("held out", source, name), 16) < held_out * 16**64
        split["validation" if held else "train"].append(entry)
    if not all(split.values()):
        raise DataError(
            f"{output}: {taken} bytes of text leave no document for train or for validation; raise --size"
        )
    output.mkdir(parents=True, exist_ok=True)
    for name, entries in split.items():
        _write(output / f"{name}.jsonl.zst", entries)
    return {
        name: (len(entries), sum(len(text.encode()) for *_, text in entries))
        for name, entries in split.items()
    }


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _write(path: Path, entries: list[Entry]) -> None:
    lines = (
        json.dumps({"text": text, "meta": {"pile_set_name": source, "name": name}}, ensure_ascii=False) + "\n"
        for source, name, text in entries
    )
    side = path.with_name(path.name + ".tmp")
    side.write_bytes(zstandard.ZstdCompressor(level=10).compress("".join(lines).encode()))
    side.replace(path)


def documents() -> Iterator[Entry]:
    """All documents this installation has, of at least 200 characters."""
    for entry in (*_sources(), *_topics(), *_docstrings(), *_licences()):
        if len(entry[2]) >= _SHORTEST:
            yield entry


def _sources() -> Iterator[Entry]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _LEFT_OUT.intersection(name.parts):
            try:
                yield "Python Standard Library", name.as_posix(), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a few old modules keep another encoding
                continue


def _topics() -> Iterator[Entry]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield "Python Language Reference", name, text


def _docstrings() -> Iterator[Entry]:
    for name in sorted(sys.stdlib_module_names):
        spec = None if name.startswith("_test") or name in ("antigravity", "this") else util.find_spec(name)
        if spec is None or not (
            spec.origin == "built-in" or isinstance(spec.loader, machinery.ExtensionFileLoader)
        ):
            continue
        try:
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                module = importlib.import_module(name)
        except ImportError:
            continue
        yield "Python Docstrings", name, "\n\n".join(_documentation(name, module))


def _documentation(name: str, thing: object) -> Iterator[str]:
    """Docstrings of a module and of its public functions, classes and their methods."""
    yield f"{name}\n{inspect.getdoc(thing) or ''}"
    members = sorted(vars(thing).items()) if hasattr(thing, "__dict__") else []
    for key, member in members:
        nested = isinstance(thing, type) and isinstance(member, type)
        if key.startswith("_") or nested or not (callable(member) and isinstance(member.__doc__, str)):
            continue
        if isinstance(member, type) and member.__module__ == getattr(thing, "__name__", None):
            yield from _documentation(f"{name}.{key}", member)
        else:
            yield f"{name}.{key}\n{inspect.getdoc(member)}"


def _licences() -> Iterator[Entry]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted((*root.glob("LICENSE*"), *root.parent.glob("LICENSE*"))):
        yield "Licences", path.name, path.read_text(encoding="utf-8")
    for wheel in sorted((root / "ensurepip" / "_bundled").glob("*.whl")):
        with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as archive:
            for name in sorted(archive.namelist()):
                if "LICENSE" in name.upper() or "COPYING" in name.upper():
                    yield "Licences", f"{wheel.name}/{name}", archive.read(name).decode("utf-8", "replace")
