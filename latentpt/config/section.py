"""What a section is, and the kinds of values that its fields may have."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

UNREACHED = 2**31 - 1
"""Counts end here; messages do not name this limit to people who meant something smaller."""

Count = Annotated[int, Ge(1), Le(UNREACHED)]
"""How many of something that there must be."""
Whole = Annotated[int, Ge(0), Le(UNREACHED)]
"""How many of something that there may be none of."""
Long = Annotated[int, Ge(1), Le(10**18)]
"""A count of tokens or steps."""
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
"""A part of a whole, or a probability."""
Decay = Annotated[float, Ge(0), Lt(1)]
"""What a running mean keeps of itself."""


_PLAIN = {bool, int, float, str, NoneType, Ellipsis}


class Section(BaseModel):
    """Base of all configuration sections: immutable, unknown keys refused, every field documented with its unit.

    Numbers are finite, and values have the kind that their field is annotated with: `true` is no 1 and '3' no 3.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    renamed: ClassVar[dict[str, str]] = {}
    """Earlier name of a key -> its name today."""

    @field_validator("*", mode="before")
    @classmethod
    def _kinds(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None  # this validates fields
        kinds = set(_leaves(cls.model_fields[info.field_name].annotation))
        if not all(_fits(scalar, kinds) for scalar in _scalars(value)):
            raise PydanticCustomError("kind", "a value of another kind")
        return value


class ConfigError(ValueError):
    """A configuration that cannot work, said in one sentence that names the key and the nearest valid value."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`."""
    candidates = list(known)
    return (difflib.get_close_matches(name, candidates, n=1, cutoff=0.0) or candidates)[0]


def nearest_divisor(of: int, wanted: int) -> int:
    """The divisor of `of` that is nearest to `wanted`, the smaller of two."""
    return min(_divisors(of), key=lambda divisor: (abs(divisor - wanted), divisor))


def _divisors(number: int) -> Iterator[int]:
    for small in range(1, int(number**0.5) + 1):
        if number % small == 0:
            yield from (small, number // small)


def require_at_least(arguments: argparse.Namespace, **least: float) -> None:
    """Raise ConfigError for the first option of a command line that is smaller than its least value; None is unset."""
    for name, least_value in least.items():
        value = getattr(arguments, name)
        if value is not None and value < least_value:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least_value}, got {value}")


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of; of a choice among names the types of the names."""
    if get_origin(annotation) is Literal:
        yield from (type(choice) for choice in get_args(annotation))
    elif get_origin(annotation) is Annotated:
        yield from _leaves(get_args(annotation)[0])
    elif get_args(annotation):
        for member in get_args(annotation):
            yield from _leaves(member)
    else:
        yield annotation


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for member in value:
            yield from _scalars(member)
    else:
        yield value


def _fits(scalar: Any, kinds: set[Any]) -> bool:
    """Whether a plain value is of one of the kinds; what is made of other kinds (sections, say) looks after itself."""
    if not kinds <= _PLAIN:
        return True
    if isinstance(scalar, float):
        return float in kinds or (int in kinds and scalar.is_integer())
    if isinstance(scalar, int) and not isinstance(scalar, bool):
        return bool(kinds & {int, float})
    return type(scalar) in kinds or not isinstance(scalar, (bool, str, NoneType))
