"""Typed configuration: sections, YAML files that extend one another, dotted overrides, and errors one can act on.

A section lives beside the code that reads it (`latentpt.modeling.config`, `latentpt.data.config`, ...);
`latentpt.run.config` composes them into one run. Values are taken in this order, later ones winning:

    defaults of the sections  <  the file named by `extends`  <  the YAML file  <  overrides `section.field=value`
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """Base of all configuration sections: immutable, unknown keys refused, every field documented with its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    renamed: ClassVar[dict[str, str]] = {}
    """Earlier name of a key -> its name today."""


class ConfigError(ValueError):
    """A configuration that cannot work, said in one sentence that names the key and the nearest valid value."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`."""
    candidates = list(known)
    return (difflib.get_close_matches(name, candidates, n=1, cutoff=0.0) or candidates)[0]


S = TypeVar("S", bound=Section)
Origins = dict[tuple[str, ...], str]  # where the value of a key came from: a file, or an override


# ---------------------------------------------------------------------------------------------- loading


def require_at_least(arguments: argparse.Namespace, **least: float) -> None:
    """Raise ConfigError for the first option of a command line that is smaller than its least value; None is unset."""
    for name, least_value in least.items():
        value = getattr(arguments, name)
        if value is not None and value < least_value:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least_value}, got {value}")


def load_config(kind: type[S], path: str | Path | None, overrides: Iterable[str] = ()) -> S:
    """Build a `kind` from defaults, the YAML file at `path` (None: defaults only) and `section.field=value` overrides.

    Raises:
        ConfigError: a missing or broken file, a cycle of `extends`, an unknown key, a wrong type, or a combination
            that a section refuses. The message is one sentence.
    """
    return build(kind, *read_config(path, overrides))


def read_config(path: str | Path | None, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], Origins]:
    """The plain values of `load_config` before they are validated, and where each came from; raises ConfigError."""
    values: dict[str, Any] = {}
    origins: Origins = {}
    if path is not None:
        _merge_file(values, origins, Path(path), ())
    for override in overrides:
        keys, value = parse_override(override)
        for key in reversed(keys):
            value = {key: value}
        _merge(values, value, origins, (), f"override {override}")
    return values, origins


def build(kind: type[S], values: Mapping[str, Any], origins: Origins | None = None) -> S:
    """Validate plain `values` into a `kind`; raises ConfigError with the first problem in one sentence."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_sentence(kind, error, origins or {})) from None


def parse_override(override: str) -> tuple[list[str], Any]:
    """`optimizer.lr=3e-4` -> (["optimizer", "lr"], 0.0003); the value is read as YAML."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r} is not of the form section.field=value")
    try:
        return keys, yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None


def to_yaml(section: Section) -> str:
    """All values of a section, defaults included, as YAML that loads back to an equal section."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ between two dumped configurations, with both values (None where absent)."""
    for key in [*old, *(key for key in new if key not in old)]:
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}", left, right


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 3e-4 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"key {key!r} appears twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a sign (3.0e-4); people write 3e-4 and 300e9.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _merge_file(values: dict[str, Any], origins: Origins, path: Path, chain: tuple[Path, ...]) -> None:
    """Merge the file's own base first, then the file; `chain` are the files that led here."""
    path = path.resolve() if chain else path
    if path.resolve() in chain:
        loop = " -> ".join(file.name for file in (*chain, path))
        raise ConfigError(f"{path}: files extend one another in a circle ({loop})")
    content = _read_yaml(path)
    base = content.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: extends must name one YAML file, got {base!r}")
        _merge_file(values, origins, path.resolve().parent / base, (*chain, path.resolve()))
    _merge(values, content, origins, (), str(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        beside = [file.name for file in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise ConfigError(f"{path}: no such configuration file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path}: {line}{error.problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, not a {type(content).__name__}")
    return content


def _merge(
    into: dict[str, Any], new: Mapping[str, Any], origins: Origins, at: tuple[str, ...], origin: str
) -> None:
    """Lay `new` over `into`, mapping by mapping; a value that is no mapping replaces what was there."""
    for key, value in new.items():
        here = (*at, str(key))
        origins[here] = origin
        if isinstance(value, Mapping):
            below = into.get(key)
            into[key] = below if isinstance(below, dict) else {}
            _merge(into[key], value, origins, here, origin)
        else:
            into[key] = value


# ---------------------------------------------------------------------------------------------- messages


def _sentence(kind: type[Section], error: ValidationError, origins: Origins) -> str:
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
    wanted = _type_name(field.annotation) if field is not None else problem["msg"].lower()
    given = problem["input"]
    return f"{where}{dotted} must be {wanted}, got {given!r}{_suggest_value(field, given)}"


def _field_path(kind: type[Section], location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The part of a pydantic location that names sections and fields (the rest names union members and indices)."""
    path: list[str] = []
    section: type[Section] | None = kind
    for part in location:
        if section is None or not isinstance(part, str):
            break
        path.append(part)
        section = _subsection(section.model_fields.get(part))
    return tuple(path)


def _field(kind: type[Section], path: tuple[str, ...]) -> FieldInfo | None:
    section: type[Section] | None = kind
    field = None
    for part in path:
        field = section.model_fields.get(part) if section is not None else None
        section = _subsection(field)
    return field


def _subsection(field: FieldInfo | None) -> type[Section] | None:
    annotation = field.annotation if field is not None else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


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
    choices = _choices(field.annotation) if field is not None else []
    close = difflib.get_close_matches(str(given), [str(choice) for choice in choices], n=1)
    return f"; did you mean {close[0]}?" if close else ""


# ---------------------------------------------------------------------------------------------- help


def options(kind: type[Section], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every option of a section and of the sections in it: (path of names, field)."""
    for name, field in kind.model_fields.items():
        section = _subsection(field)
        if section is None:
            yield (*prefix, name), field
        else:
            yield from options(section, (*prefix, name))


def describe(kind: type[Section]) -> str:
    """A listing of every option: dotted name, type, default, meaning and unit, one paragraph each."""
    lines = []
    for path, field in options(kind):
        default = "required" if field.is_required() else f"default {_yaml_value(field.get_default())}"
        lines.append(f"  {'.'.join(path)}  ({_type_name(field.annotation)}; {default})")
        lines.append(f"      {' '.join((field.description or '').split())}")
    return "\n".join(lines)


def _yaml_value(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return [choice for member in get_args(annotation) for choice in _choices(member)]
    return []


_PLAIN_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "null",
}


def _type_name(annotation: Any) -> str:
    """What a user must write for an annotation: `int | None` -> `a whole number or null`."""
    if annotation in _PLAIN_NAMES:
        return _PLAIN_NAMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin in (list, tuple):
        members = [_type_name(argument) for argument in arguments if argument is not Ellipsis]
        many = origin is list or Ellipsis in arguments
        return f"a list of {members[0]}" if many else f"[{', '.join(members)}]"
    if origin is dict:
        return f"a mapping of names to {_type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section of {', '.join(annotation.model_fields)}"
    return str(annotation)
