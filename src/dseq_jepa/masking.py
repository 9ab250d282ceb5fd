"""Secrets stay out of what is written: passwords and tokens of a tracking server.

masked("https://me:secret@host/path")   # -> "https://***@host/path"
"""

import os
import re
from collections.abc import Mapping
from typing import Any

_IN_URI = re.compile(r"(?<=://)[^\s/\"]+(?=@)")  # to the last @, for a password may hold one
_SHORTEST = 4  # a shorter one would be found in every other word, and hides nothing
_SECRETS = (
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_AUTH_ADMIN_PASSWORD", "DSEQ_DASHBOARD_PASSWORD",
)  # fmt: skip


def masked(text: str) -> str:
    """The text with user and password of every URI, and the environment's MLflow secrets, replaced by ***."""
    if "@" in text:
        text = _IN_URI.sub("***", text)
    for name in _SECRETS:
        secret = os.environ.get(name)
        if secret and len(secret) >= _SHORTEST and secret in text:
            text = text.replace(secret, "***")
    return text


def masked_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with every text in it masked; keys and numbers stay, so it is the same JSON otherwise."""
    return {key: _masked_value(value) for key, value in record.items()}


def _masked_value(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return masked_values(value)
    if isinstance(value, list | tuple):
        return [_masked_value(entry) for entry in value]
    return value
