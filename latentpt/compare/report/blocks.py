"""A report as a list of blocks, and its three forms: a page, Markdown, and text for the terminal."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from latentpt.pages.document import picture, table
from latentpt.pages.tables import markdown_table, text_table


class Heading(NamedTuple):
    """Begins a part of the report."""

    text: str


class Words(NamedTuple):
    """A paragraph, or several sentences one under the other."""

    sentences: Sequence[str]


class Table(NamedTuple):
    """A table, with the name of its files."""

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG, with the name of its file and what it shows."""

    name: str
    words: str
    content: bytes


Block = Heading | Words | Table | Picture


def as_html(blocks: Sequence[Block]) -> str:
    """The body of a page; every piece of text is escaped, pictures are inside."""
    return "\n".join(map(_html, blocks))


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Words([sentence]):
            return f"<p>{html.escape(sentence)}</p>"
        case Words(sentences):
            return "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>"
        case Table(_, header, rows):
            return f'<div class="wide">{table(header, rows)}</div>'
        case Picture(_, words, content):
            return picture(words, content)


def as_markdown(blocks: Sequence[Block]) -> str:
    """Markdown beside whose file the pictures lie."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Words([sentence]):
            return sentence
        case Words(sentences):
            return "\n".join(f"* {sentence}" for sentence in sentences)
        case Table(_, header, rows):
            return markdown_table(header, rows)
        case Picture(name, words, _):
            return f"![{words}]({name})"


def as_text(blocks: Sequence[Block]) -> str:
    """Text for the terminal, without pictures."""
    shown = []
    for block in blocks:
        match block:
            case Heading(text):
                shown.append(f"{text}\n{'-' * len(text)}")
            case Words(sentences):
                shown.append("\n".join(sentences))
            case Table(_, header, rows):
                shown.append(text_table(header, rows))
    return "\n\n".join(shown)
