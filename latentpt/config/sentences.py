"""What is wrong with a configuration, in one sentence, and what a user must write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from latentpt.config.listing import choices, options, subsection, type_name
from latentpt.config.reading import Origins
from latentpt.config.section import Section, nearest


def sentence(kind: type[Section], error: ValidationError, origins: Origins) -> str:
    """The first problem of a pydantic error in one sentence, preceded by where the value came from."""
    problems = error.errors(include_url=False)
    # A misspelt key explains the one that is missing.
    first = {"extra_forbidden": 0, "missing": 2}
    problem = min(problems, key=lambda problem: first.get(problem["type"], 1))
    path = _field_path(kind, problem["loc"])
    origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), "")
    dotted = ".".join(path)
    where = f"{origin}: " if origin else ""
    if problem["type"] == "extra_forbidden" and len(path) < len(problem["loc"]):  # in a list of sections
        key, field = str(problem["loc"][-1]), _field(kind, path)
        known = [
            name
            for section in _sections_in(field.annotation if field else None)
            for name in section.model_fields
        ]
        return f"{where}unknown key {key} in {dotted}; did you mean {nearest(key, known)}?"
    if problem["type"] == "extra_forbidden" and dotted in kind.renamed:
        return f"{where}the key {dotted} is called {kind.renamed[dotted]}"
    if problem["type"] == "extra_forbidden":
        return f"{where}unknown key {dotted}{_suggest_key(kind, path)}"
    if problem["type"] == "missing" and len(path) == len(problem["loc"]):
        return f"{dotted} is required and was not given ({_documentation(kind, path)})"
    if problem["type"] == "value_error":
        return where + problem["msg"].removeprefix("Value error, ")
    field = _field(kind, path)
    wanted = type_name(field.annotation, field.metadata) if field is not None else problem["msg"].lower()
    given = problem["input"]
    return f"{where}{dotted} must be {wanted}, got {_shortened(given)}{_suggest_value(field, given)}"


def _field_path(kind: type[Section], location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The part of a pydantic location that names sections and fields (the rest names union members and indices)."""
    path: list[str] = []
    section: type[Section] | None = kind
    for part in location:
        if section is None or not isinstance(part, str):
            break
        path.append(part)
        section = subsection(section.model_fields.get(part))
    return tuple(path)


def _field(kind: type[Section], path: tuple[str, ...]) -> FieldInfo | None:
    section: type[Section] | None = kind
    field = None
    for part in path:
        field = section.model_fields.get(part) if section is not None else None
        section = subsection(field)
    return field


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for member in get_args(annotation):
        yield from _sections_in(member)


def _documentation(kind: type[Section], path: tuple[str, ...]) -> str:
    field = _field(kind, path)
    return (field.description if field is not None else None) or "a section"


def _suggest_key(kind: type[Section], path: tuple[str, ...]) -> str:
    """The valid dotted key nearest to an unknown one: in the same section first, then anywhere by its last name."""
    known = [".".join(option) for option, _ in options(kind)]
    anywhere = {key.split(".")[-1]: key for key in reversed(known)}
    known += kind.model_fields
    inside = {key.split(".")[-1]: key for key in known if key.split(".")[:-1] == list(path[:-1])}
    for names in (inside, anywhere):
        close = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.7)
        if close:
            return f"; did you mean {names[close[0]]}?"
    where = ".".join(path[:-1])
    return (
        f"; {where} has {', '.join(inside)}"
        if where
        else f"; the sections are {', '.join(kind.model_fields)}"
    )


def _suggest_value(field: FieldInfo | None, given: Any) -> str:
    """For a choice among names, the name nearest to what was given."""
    names = [str(choice) for choice in choices(field.annotation)] if field is not None else []
    close = difflib.get_close_matches(str(given), names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _shortened(value: Any) -> str:
    """A value as it was given, cut where nobody would read on."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]} .."
