"""What the settings classes say, for editors and people: the JSON schema and configs/README.md are generated from them.

    python -m dseq_jepa.schema        # from the repository's root; rewrites both files

The settings classes are the only source; a test fails when a generated file is stale.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dseq_jepa.config import Experiment
from dseq_jepa.files import write_atomically

SCHEMA = Path("workflow/schemas/config.schema.json")
REFERENCE = Path("configs/README.md")

_INTRODUCTION = """\
# Configurations

| file | what |
| --- | --- |
| `demo.yaml` | the whole pipeline on generated pictures, two CPU cores, minutes |
| `paper.yaml` | the paper: ImageNet, 8 x H200, every number with its source |
| `reported_values.csv` | what the paper prints; tables show it beside ours |

A file describes one experiment. It is closed: an unknown key, a number written as text, a name that nothing defines and
an entry that nothing uses are errors before any job starts, each with the file, the key and the nearest valid name.
`workflow/schemas/config.schema.json` gives editors completion; start a file with
`# yaml-language-server: $schema=../workflow/schemas/config.schema.json`.

YAML reads `1e-4` as text: write `1.0e-4`. `&name` and `<<: *name` copy an entry, as in the two files here.

**A new method variant** is an entry under `methods` and a row of a table that names it (without `reported`, since the
paper does not report it). **Another encoder** is an entry under `architectures`. **Your own data** in one of the
layouts is an entry under `data`.

Below, `<name>` stands for a name of your choice and `[]` for each element of a list. This page is generated from the
settings classes (`python -m dseq_jepa.schema`).
"""


def schema_text() -> str:
    """JSON schema of a configuration file."""
    schema = _with_conditions(Experiment.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A DSeq-JEPA experiment"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def _with_conditions(node: Any) -> Any:
    """The schema with every choice of a kind as `if ... then`: validators then speak of the kind that was written."""
    if isinstance(node, list):
        return [_with_conditions(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    if "discriminator" not in node:
        return {key: _with_conditions(entry) for key, entry in node.items()}
    key, kinds = node["discriminator"]["propertyName"], node["discriminator"]["mapping"]
    conditions = [{"if": {"properties": {key: {"const": kind}}}, "then": {"$ref": at}} for kind, at in kinds.items()]
    return {"type": "object", "required": [key], "properties": {key: {"enum": list(kinds)}}, "allOf": conditions}


def reference_text() -> str:
    """Every key with its type, default and meaning, as Markdown."""
    schema = Experiment.model_json_schema()
    sections = [_INTRODUCTION]
    for path, node in _sections("", schema, schema["$defs"]):
        title = f"`{path}`" if path else "The file"
        keys = [_row(key, field, key in node.get("required", [])) for key, field in node["properties"].items()]
        about = _line(node.get("description", ""))
        table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *keys]
        sections.append("\n".join([f"## {title}", "", about, "", *table, ""]))
    return "\n".join(sections)


def _sections(path: str, node: dict[str, Any], definitions: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Settings classes by key path, outer before inner."""
    yield path, node
    for key, field in node["properties"].items():
        for suffix, reference in _targets(field):
            inner = f"{path}.{key}{suffix}" if path else f"{key}{suffix}"
            yield from _sections(inner, definitions[reference], definitions)


def _targets(node: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings classes inside a field, each with what stands between the key and that class's keys."""
    if "$ref" in node:
        return [("", node["$ref"].rsplit("/", 1)[-1])]
    if "discriminator" in node:
        kinds = node["discriminator"]["mapping"].items()
        return [(f" (kind: {kind})", reference.rsplit("/", 1)[-1]) for kind, reference in kinds]
    for option in node.get("anyOf", []):
        if found := _targets(option):
            return found
    for key, between in (("items", "[]"), ("additionalProperties", ".<name>")):
        inner = node.get(key)
        if isinstance(inner, dict) and (found := _targets(inner)):
            return [(f"{between}{suffix}", reference) for suffix, reference in found]
    return []


def _row(key: str, node: dict[str, Any], required: bool) -> str:
    given = node.get("default")
    default = "required" if required else "below" if given and isinstance(given, dict) else _code(given)
    cells = (f"`{key}`", _type(node), default, _line(node.get("description", "")))
    return f"| {' | '.join(cells)} |"


def _type(node: dict[str, Any]) -> str:
    """A field's type in words."""
    if "anyOf" in node:
        return " or ".join("null" if option.get("type") == "null" else _type(option) for option in node["anyOf"])
    if "$ref" in node or "discriminator" in node:
        return "keys below"
    if "const" in node:
        return _code(node["const"])
    if "enum" in node:
        return " or ".join(_code(value) for value in node["enum"])
    match node["type"]:
        case "array" if "prefixItems" in node:
            return f"[{', '.join(_type(item) for item in node['prefixItems'])}]"
        case "array":
            return f"list of {_type(node['items'])}"
        case "object":
            return _mapping(node)
        case "integer" | "number":
            return _limited({"integer": "whole number", "number": "number"}[node["type"]], node)
        case kind:
            return {"string": "text", "boolean": "true or false"}[kind]


def _mapping(node: dict[str, Any]) -> str:
    names = f" ({', '.join(map(_code, node['propertyNames']['enum']))})" if "propertyNames" in node else ""
    return f"names{names}: {_type(node['additionalProperties'])}"


def _limited(kind: str, node: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node]
    return f"{kind} {', '.join(limits)}".rstrip()


def _code(value: object) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _line(text: str) -> str:
    """One line that Markdown shows as it is; between backticks it does so anyway."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


if __name__ == "__main__":
    write_atomically(SCHEMA, schema_text())
    write_atomically(REFERENCE, reference_text())
