"""Configurations as they are written: YAML files that extend one another, and dotted overrides.

The YAML is that of version 1.2 and plain: true and false are the only truths, 010 and 1:30 are texts, there are no dates and no tags.
Anchors, aliases and merge keys (`<<: *a`) work.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from latentpt.config.section import ConfigError

Origins = dict[tuple[str, ...], str]  # where the value of a key came from: a file, or an override

_MOST_VALUES = 100_000  # in one file, aliases written out


def parse_override(override: str) -> tuple[list[str], Any]:
    """`optimizer.lr=3e-4` -> (["optimizer", "lr"], 0.0003); the value is read as YAML."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r} is not of the form section.field=value")
    try:
        return keys, yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"override {override[:200]!r}: the value is not valid YAML") from None


def merge_file(values: dict[str, Any], origins: Origins, path: Path, chain: tuple[Path, ...] = ()) -> None:
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
        folder = path.resolve().parent
        if not (folder / base).resolve().is_relative_to(folder):
            raise ConfigError(f"{path}: extends = {base} lies outside of the folder of this file")
        merge_file(values, origins, folder / base, (*chain, path.resolve()))
    merge(values, content, origins, (), str(path))


def merge(
    into: dict[str, Any], new: Mapping[str, Any], origins: Origins, at: tuple[str, ...], origin: str
) -> None:
    """Lay `new` over `into`, mapping by mapping; a value that is no mapping replaces what was there."""
    for key, value in new.items():
        here = (*at, key)
        origins[here] = origin
        if isinstance(value, Mapping):
            below = into.get(key)
            into[key] = dict(below) if isinstance(below, dict) else {}
            merge(into[key], value, origins, here, origin)
        else:
            into[key] = value


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
    except RecursionError:
        raise ConfigError(f"{path}: values are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, not a {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.2; what a file may not hold is refused while its nodes are put together, before anything is made of them."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._values: dict[yaml.Node, int] = {}  # in each finished node, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _refused(event.start_mark, f"the tag {event.tag} is not read; values are plain YAML")
        node = super().compose_node(parent, index)
        assert node is not None  # it is of an event
        if isinstance(event, yaml.AliasEvent) and node not in self._values:
            raise _refused(event.start_mark, f"*{event.anchor} stands inside of what it names")
        self._values.setdefault(node, 1 + sum(self._values[child] for child in _children(node)))
        if self._values[node] > _MOST_VALUES:
            raise _refused(event.start_mark, f"aliases stand for more than {_MOST_VALUES} values")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key.start_mark, "a key is a word, not a list or a mapping")
            if key.value in seen:
                raise _refused(key.start_mark, f"key {key.value!r} appears twice")
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"  # the name 2024, or null, is a name
        return node


def _children(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refused(mark: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


# People write 3e-4 and 300e9, which YAML 1.1 takes for texts, and mean neither a base of 8 nor one of 60.
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
