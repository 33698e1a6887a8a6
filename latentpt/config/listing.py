"""All options of a section: what `--help` lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latentpt.config.section import UNREACHED, Section


def options(kind: type[Section], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every option of a section and of the sections in it: (path of names, field)."""
    for name, field in kind.model_fields.items():
        section = subsection(field)
        if section is None:
            yield (*prefix, name), field
        else:
            yield from options(section, (*prefix, name))


def describe(kind: type[Section]) -> str:
    """A listing of every option: dotted name, type, default, meaning and unit, one paragraph each."""
    lines = []
    for path, field in options(kind):
        default = "required" if field.is_required() else f"default {_yaml_value(field.get_default())}"
        lines.append(f"  {'.'.join(path)}  ({type_name(field.annotation, field.metadata)}; {default})")
        lines.append(f"      {' '.join((field.description or '').split())}")
    return "\n".join(lines)


def _yaml_value(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def subsection(field: FieldInfo | None) -> type[Section] | None:
    annotation = field.annotation if field is not None else None
    if get_origin(annotation) in (Union, UnionType):  # a section or null
        annotation = next((member for member in get_args(annotation) if member is not NoneType), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return [choice for member in get_args(annotation) for choice in choices(member)]
    return []


_PLAIN_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "null",
}


def type_name(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a user must write for an annotation: `Count | None` -> `a whole number of at least 1 or null`."""
    if get_origin(annotation) is Annotated:
        return type_name(annotation.__origin__, annotation.__metadata__)
    if annotation in (int, float):
        return _number(_PLAIN_NAMES[annotation], metadata)
    if annotation in _PLAIN_NAMES:
        return _PLAIN_NAMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (Union, UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if origin in (list, tuple):
        members = [type_name(argument) for argument in arguments if argument is not Ellipsis]
        many = origin is list or Ellipsis in arguments
        return f"a list of {members[0]}" if many else f"[{', '.join(members)}]"
    if origin is dict:
        return f"a mapping of names to {type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section of {', '.join(annotation.model_fields)}"
    return str(annotation)


def _number(name: str, limits: Iterable[Any]) -> str:
    """A kind of number with its limits in words; a limit that nobody reaches is left out."""
    low = next((limit for limit in limits if isinstance(limit, (Ge, Gt))), None)
    high = next((limit for limit in limits if isinstance(limit, (Le, Lt))), None)
    if isinstance(low, Gt) and low.gt == 0 and high is None:
        return name.replace("a ", "a positive ")
    least = "" if low is None else f" of at least {low.ge}" if isinstance(low, Ge) else f" above {low.gt}"
    included: Any = (
        high.le if isinstance(high, Le) else None
    )  # annotated_types promises no more than an order
    if high is None or (included is not None and included >= UNREACHED):
        return name + least
    most = f"{high.le}" if isinstance(high, Le) else f"below {high.lt}"
    return f"{name} from {low.ge if isinstance(low, Ge) else 0} to {most}"
