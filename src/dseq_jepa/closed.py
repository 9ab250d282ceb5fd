"""The base of every settings class: typed, closed and frozen.

An unknown key, a number written as text or a value out of range is an error, never a default.
"""

from pydantic import BaseModel, ConfigDict


class Closed(BaseModel):
    """Settings that accept exactly the declared keys, with exactly the declared types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
