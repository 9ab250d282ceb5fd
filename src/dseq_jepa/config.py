"""What a configuration file means: one typed, closed description of an experiment.

    python -c 'from dseq_jepa.config import load; print(load("configs/demo.yaml").name)'

Everything is checked before any job starts: keys, types, ranges and every name that points at another entry. Each
problem is one line: file, key path, what is wrong, the nearest valid name.
"""

import datetime
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from dseq_jepa.closed import NAME, Closed
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings, MiniatureSettings
from dseq_jepa.errors import ConfigError
from dseq_jepa.evaluation.settings import EvaluationSettings, FinetuneSettings, ProbeSettings
from dseq_jepa.feasible import impossible
from dseq_jepa.figures.settings import FigureSettings, methods_of, misfits
from dseq_jepa.methods.settings import MethodSettings
from dseq_jepa.models.settings import ArchitectureSettings
from dseq_jepa.tables.settings import TableSettings
from dseq_jepa.training.settings import Recipe, SelectionSettings


class ComputeSettings(Closed):
    """How a job computes. These change results in the last bits, so they are configuration and not reservations."""

    device: Literal["cpu", "cuda"]
    """Where tensors live; each rank uses one device."""
    threads: int = Field(ge=1)
    """Compute threads of one process on the CPU."""
    ranks: int = Field(1, ge=1)
    """Processes of one job on this machine, one GPU each; torchrun or Slurm overrules it."""


class TrackingSettings(Closed):
    """The MLflow mirror of the journals."""

    experiment: str | None = None
    """MLflow experiment; the configuration's name unless given."""


class Experiment(Closed):
    """A whole configuration file."""

    name: str = Field(pattern=NAME)
    """Results go to results/<name>."""
    results: Path = Path("results")
    """Folder of all results."""
    seeds: list[int] = Field(min_length=1)
    """One pre-training per method, architecture and seed."""
    compute: ComputeSettings
    """Where and with how many threads a job computes."""
    loading: LoadingSettings
    """How pictures are read."""
    data: dict[str, DatasetSettings]
    """Data sets by name; `data/<name>` of the results holds generated ones."""
    miniature: MiniatureSettings | None = None
    """Generate the data sets instead of expecting them."""
    architectures: dict[str, ArchitectureSettings]
    """Encoders with their predictors, by name."""
    recipes: dict[str, Recipe]
    """Optimisation settings that architectures name."""
    methods: dict[str, MethodSettings]
    """Pre-training methods, by name; a new variant is a new entry."""
    pretraining_data: str = "imagenet"
    """Which entry of `data` is pre-trained on."""
    selection: SelectionSettings = SelectionSettings()
    """How a checkpoint is chosen."""
    evaluations: dict[str, EvaluationSettings]
    """Measurements of an exported encoder, by name."""
    tables: dict[str, TableSettings]
    """What the tables show, by name (table<number>)."""
    figures: dict[str, FigureSettings] = Field({})
    """What is drawn, by name."""
    tracking: TrackingSettings = TrackingSettings()
    """The MLflow mirror."""

    @property
    def directory(self) -> Path:
        """Where everything of this experiment is written."""
        return self.results / self.name

    @property
    def groups(self) -> dict[str, list[str]]:
        """Evaluations by the group whose job runs them on a model, so that start-up is paid once."""
        groups: dict[str, list[str]] = {}
        for name, evaluation in self.evaluations.items():
            groups.setdefault(evaluation.group, []).append(name)
        return groups

    def group_of(self, evaluation: str) -> str:
        """The group whose job measures an evaluation."""
        return self.evaluations[evaluation].group

    def groups_of_kind(self, kind: str) -> list[str]:
        """The groups whose evaluations are of one kind, which is also the verb that runs them."""
        return [group for group, names in self.groups.items() if self.evaluations[names[0]].kind == kind]


def load(path: str | Path) -> Experiment:
    """Read, check and return a configuration file.

    Raises:
        ConfigError: naming the file, the key path and the nearest valid name of every problem.

    """
    return from_mapping(read_yaml(path), str(path))


def from_mapping(mapping: Mapping[str, Any], source: str) -> Experiment:
    """Check an already parsed configuration; `source` is named in errors."""
    try:
        experiment = Experiment.model_validate_json(json.dumps(mapping, default=_date_as_text))
    except ValidationError as error:
        raise ConfigError(source, _explain(error, mapping)) from None
    except (TypeError, ValueError) as error:  # a set, bytes, an anchor inside itself
        raise ConfigError(source, [f"not representable as JSON: {error}"]) from None
    problems = list(_dangling(experiment))
    if problems:
        raise ConfigError(source, problems)
    return experiment


def _date_as_text(value: object) -> str:
    """YAML turns 2024-01-31 into a date; no setting is one."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} {_short(value)}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice; plain YAML would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as written: merge keys (<<) are not expanded yet
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key must be a name", key_node.start_mark)
            if key_node.value in seen:
                problem = f"key {key_node.value!r} is written twice"
                raise yaml.composer.ComposerError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return node


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Parse a YAML file into a mapping with unique keys."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(str(path), [f"{line}{error.problem}"]) from None
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise ConfigError(str(path), [f"not a text file: {error.reason}"]) from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), ["expected a mapping of keys to values"])
    return content


def _explain(error: ValidationError, mapping: Mapping[str, Any]) -> list[str]:
    return [_sentence(problem, mapping) for problem in error.errors(include_url=False)]


def _sentence(problem: Any, mapping: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in _keys(problem["loc"])) or "the file"
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key; {nearest(str(problem['loc'][-1]), _fields_at(problem['loc'][:-1]))}"
        case "union_tag_not_found" | "union_tag_invalid":
            return _kind_problem(where, problem)
        case "missing":
            return f"{where}: required but not given"
        case "literal_error":
            valid = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            return f"{where}: there is no {_short(problem['input'])}; {nearest(str(problem['input']), valid)}"
        case "float_type" | "int_type" if _is_number(problem["input"]):
            hint = (
                "; YAML reads 1e-4 as text, write 1.0e-4" if "e" in problem["input"].lower() else "; remove the quotes"
            )
            return f"{where}: expected a number, got the text {problem['input']!r}{hint}"
        case "value_error":
            return f"{where}: {problem['ctx']['error']}"
        case _:
            return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {_short(problem['input'])}"


def _is_number(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind_problem(where: str, problem: Any) -> str:
    """An entry whose kind is not given, or not one that exists."""
    key = problem["ctx"]["discriminator"].strip("'")
    if problem["type"] == "union_tag_invalid":
        valid = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
        return f"{where}.{key}: no such kind {_short(problem['input'][key])}; {nearest(problem['ctx']['tag'], valid)}"
    close = difflib.get_close_matches(key, map(str, problem["input"]), n=1, cutoff=0.6)
    if close and close[0] != key:
        return f'{where}.{close[0]}: unknown key; did you mean "{key}"?'
    return f"{where}.{key}: required but not given"


def _keys(location: Iterable[str | int]) -> list[str | int]:
    """A key path as it is written in the file: without the kinds that pydantic puts after the entries that have one."""
    return [part for part, _ in _walk(location) if part is not None]


def _fields_at(location: Iterable[str | int]) -> list[str]:
    """Valid keys at a key path."""
    *_, (_, node) = _walk(location)
    return list(_resolve(node, _schema()).get("properties", {}))


@cache
def _schema() -> dict[str, Any]:
    return Experiment.model_json_schema()


def _walk(location: Iterable[str | int]) -> Iterable[tuple[str | int | None, dict[str, Any]]]:
    """The nodes of the settings classes' JSON schema along a location, each with its key (None: a kind, or the top)."""
    schema = _schema()
    node: dict[str, Any] = schema
    yield None, node
    for part in location:
        node = _resolve(node, schema)
        kinds = node.get("discriminator", {}).get("mapping", {})
        if part in kinds:
            node = {"$ref": kinds[part]}
            yield None, node
            continue
        if isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            node = node.get("additionalProperties") or {}
        yield part, node


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", []):
        if option.get("type") != "null":
            node = option
            break
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint that names the closest valid name, or all of them when none is close."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"valid: {', '.join(valid) or 'none'}"


def _dangling(experiment: Experiment) -> Iterable[str]:
    """Names that point at nothing or that nothing points at, and combinations that no single entry can see."""
    yield from _bad_names(experiment)
    for key, architecture in experiment.architectures.items():
        yield from _unknown(f"architectures.{key}.recipe", architecture.recipe, experiment.recipes)
    yield from _unknown("pretraining_data", experiment.pretraining_data, experiment.data)
    for key, evaluation in experiment.evaluations.items():
        yield from _unknown(f"evaluations.{key}.data", evaluation.data, experiment.data)
        if isinstance(evaluation, FinetuneSettings):
            for name in evaluation.architectures:
                yield from _unknown(f"evaluations.{key}.architectures.{name}", name, experiment.architectures)
    for key, table in experiment.tables.items():
        yield from _bad_columns(experiment, f"tables.{key}", table)
        yield from _bad_rows(experiment, f"tables.{key}", table)
    for key, figure in experiment.figures.items():
        yield from _bad_figure(experiment, f"figures.{key}", figure)
    yield from _unused(experiment)
    yield from _bad_groups(experiment)
    yield from _bad_targets(experiment)
    yield from _bad_miniature(experiment)
    yield from impossible(experiment)


def _unknown(where: str, name: str, valid: Iterable[str]) -> Iterable[str]:
    if name not in valid:
        yield f'{where}: "{name}" is not defined; {nearest(name, valid)}'


FIGURES = ("figure2", "figure3", "figure4", "figure6", "figure7", "regions")
"""What figures may be called: the paper's numbers, and the one that it lacks."""


def _bad_names(experiment: Experiment) -> Iterable[str]:
    for section in ("data", "architectures", "recipes", "methods", "evaluations", "figures"):
        for name in getattr(experiment, section):
            if not re.fullmatch(NAME, name):
                yield f'{section}.{name}: names become folders; use lower-case letters, digits and single "-"'
    for name, table in experiment.tables.items():
        if name != f"table{table.number}":
            yield f'tables.{name}: number is {table.number}, so it is called "table{table.number}"'
    for name in experiment.figures:
        if name not in FIGURES:
            yield f"figures.{name}: no such figure; {nearest(name, FIGURES)}"
    if len(set(experiment.seeds)) != len(experiment.seeds) or min(experiment.seeds) < 0:
        yield f"seeds: {experiment.seeds} must be different numbers from 0 on"


def _bad_columns(experiment: Experiment, where: str, table: TableSettings) -> Iterable[str]:
    metrics = [column.metric for column in table.columns]
    for i, column in enumerate(table.columns):
        if column.evaluation is not None:
            yield from _unknown(f"{where}.columns.{i}.evaluation", column.evaluation, experiment.evaluations)
        if column.metric in metrics[:i]:
            yield f'{where}.columns.{i}.metric: "{column.metric}" is a column already'
    for i, metric in enumerate(table.average or []):
        yield from _unknown(f"{where}.average.{i}", metric, metrics)


def _bad_rows(experiment: Experiment, where: str, table: TableSettings) -> Iterable[str]:
    systems = [(row.system(experiment.methods), row.reported_architecture) for row in table.rows]
    for i, row in enumerate(table.rows):
        if row.method is not None:
            yield from _unknown(f"{where}.rows.{i}.method", row.method, experiment.methods)
        if row.architecture is not None:
            yield from _unknown(f"{where}.rows.{i}.architecture", row.architecture, experiment.architectures)
        if systems[i] in systems[:i]:
            yield f"{where}.rows.{i}: {' '.join(systems[i])} is a row already"
        if row.baseline is not None:
            comparable = [name for name, size in systems if (name, size) != systems[i] and size == systems[i][1]]
            yield from _unknown(f"{where}.rows.{i}.baseline", row.baseline, comparable)


def _bad_figure(experiment: Experiment, where: str, figure: FigureSettings) -> Iterable[str]:
    for method in methods_of(figure):
        yield from _unknown(f"{where}.method", method, experiment.methods)
    yield from _unknown(f"{where}.architecture", figure.architecture, experiment.architectures)
    for key, problem in misfits(figure, experiment.methods, experiment.selection.keep_percent):
        yield f"{where}.{key}: {problem}"


_UNUSED = {
    "methods": "no row of a table or figure uses it",
    "architectures": "no row of a table or figure uses it",
    "evaluations": "no table shows an evaluation of its group",
}


def _unused(experiment: Experiment) -> Iterable[str]:
    """Entries that no job would ever read: a misspelt name, or something left behind."""
    rows = [row for table in experiment.tables.values() for row in table.rows]
    readers = {
        "data": {experiment.pretraining_data, *(e.data for e in experiment.evaluations.values())},
        "recipes": {architecture.recipe for architecture in experiment.architectures.values()},
    }
    if experiment.tables:  # without tables, jobs are asked for by hand
        readers["methods"] = {row.method for row in rows if row.method is not None}
        readers["architectures"] = {row.architecture for row in rows if row.architecture is not None}
        for figure in experiment.figures.values():
            readers["methods"].update(methods_of(figure))
            readers["architectures"].add(figure.architecture)
        shown = {column.evaluation for table in experiment.tables.values() for column in table.columns}
        readers["evaluations"] = {name for names in experiment.groups.values() if shown & set(names) for name in names}
    for section, used in readers.items():
        entries = getattr(experiment, section)
        undefined = sorted(used - set(entries))
        for name in entries:
            if name not in used:
                reason = _UNUSED.get(section, "no entry uses it")
                advice = nearest(name, undefined) if undefined else "use it or remove it"
                yield f"{section}.{name}: defined, but {reason}; {advice}"


def _bad_groups(experiment: Experiment) -> Iterable[str]:
    """Only probes share a job."""
    for group, names in experiment.groups.items():
        alone = [name for name in names if experiment.evaluations[name].kind != "probe"]
        if alone and len(names) > 1:
            others = ", ".join(name for name in names if name != alone[0])
            yield (
                f"evaluations.{alone[0]}.group: {group} also has {others}; only probes share a job, give it a group of "
                "its own"
            )


LAYOUTS_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "probe": ("imagenet", "inat21", "cub", "cars", "clevr"),
    "finetune": ("imagenet", "inat21", "cub", "cars"),
    "segment": ("ade20k",),
    "detect": ("coco",),
    "cost": ("imagenet", "inat21", "cub", "cars", "clevr"),
}
"""Layouts whose labels a kind of evaluation is about."""


def _bad_targets(experiment: Experiment) -> Iterable[str]:
    """Evaluations of data whose labels say nothing about what they measure."""
    for key, evaluation in experiment.evaluations.items():
        data = experiment.data.get(evaluation.data)
        if data is None:
            continue
        if evaluation.kind == "cost" and evaluation.data != experiment.pretraining_data:
            yield f"evaluations.{key}.data: costs are of pre-training; expected {experiment.pretraining_data}"
        valid = LAYOUTS_OF_KIND[evaluation.kind]
        if data.layout not in valid:
            yield f"evaluations.{key}.data: a {evaluation.kind} cannot use {data.layout}; it takes {', '.join(valid)}"
        elif isinstance(evaluation, ProbeSettings) and (evaluation.target == "class") == (data.layout == "clevr"):
            expected = "count or distance" if data.layout == "clevr" else "class"
            yield f"evaluations.{key}.target: {evaluation.target} is not a label of {data.layout}; expected {expected}"


def _bad_miniature(experiment: Experiment) -> Iterable[str]:
    if experiment.miniature is None:
        return
    for split in ("train_images", "val_images"):
        generated = getattr(experiment.miniature, split)
        for key, data in experiment.data.items():
            if data.layout not in generated:
                yield f"miniature.{split}: no {data.layout}, which data.{key} needs; {nearest(data.layout, generated)}"
