"""What sections are made of: settings that are checked, and kinds of values that many share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from storage.errors import StoreError
from storage.place import Place

__all__ = [
    "UNSHOWN",
    "Address",
    "Count",
    "Fraction",
    "NonNegative",
    "Positive",
    "Section",
    "Weight",
    "unshown",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]

UNSHOWN = "unshown"  # the type of errors whose message stands alone


def unshown(message: str) -> PydanticCustomError:
    """A refusal that does not repeat the value, which may hold keys."""
    return PydanticCustomError(UNSHOWN, "{message}", {"message": message})


def _address(value: object) -> object:
    """Of a place, checked."""
    if not isinstance(value, str | Path):
        return value
    try:
        return str(Place.of(value))
    except StoreError as error:
        raise unshown(str(error)) from error


Address = Annotated[str, BeforeValidator(_address)]


class Section(BaseModel):
    """Settings that are refused where they are unknown or out of range, never passed over."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )
