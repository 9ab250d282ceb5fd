"""The base of every settings class: typed, closed and frozen.

An unknown key, a number written as text or a value out of range is an error, never a default.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
"""Names that become folders: lower-case letters, digits and single "-"."""

DecayRate = Annotated[float, Field(ge=0, lt=1)]
"""Of an average that follows what it averages; at 1 it would never move."""


class Closed(BaseModel):
    """Settings that accept exactly the declared keys, with exactly the declared types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
