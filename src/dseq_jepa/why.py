"""Where a number of a table comes from: the files behind it with their hashes, and the commands that make it again.

    dseq-jepa why results/demo/tables/table1.csv --cell dseq-jepa:cub
    dseq-jepa why results/demo/tables/table1.csv --cell dseq-jepa:cub --script > again.sh && bash again.sh

Every file is hashed now and compared with what the job that used it recorded, so a chain that is printed without a
warning ("!") is the one that made the number.
"""

import csv
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dseq_jepa.config import nearest
from dseq_jepa.errors import UserError
from dseq_jepa.files import file_sha256
from dseq_jepa.provenance import FILE

_SAME = 5e-7  # tables hold six decimals


@dataclass
class Link:
    """One file of a chain, what is to be known about it, and what does not fit."""

    title: str
    file: Path | None
    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """As it is printed; reads the whole file for its hash."""
        yield self.title
        if self.file is not None:
            yield f"    {self.file}"
            yield f"    sha256 {file_sha256(self.file)}" if self.file.is_file() else "    ! this file is gone"
        yield from (f"    {fact}" for fact in self.facts)
        yield from (f"    ! {warning}" for warning in self.warnings)


@dataclass(frozen=True)
class Source:
    """What one seed contributes to a cell."""

    results: Path
    run: str
    """Folder of the evaluation below the results."""
    seed: str
    value: float

    @property
    def model(self) -> str:
        """<method>/<architecture>/seed<seed>."""
        return "/".join(Path(self.run).parts[-3:])

    def folder(self, step: str) -> Path:
        """Where a step of this model wrote."""
        return self.results / step / self.model


def explain(table: Path, cell: str) -> str:
    """The chain behind a cell, as text.

    Args:
        table: results/<config>/tables/<table>.csv.
        cell: ROW:COLUMN; a row by method or printed name, and by architecture ("i-jepa/ViT-L/16:cub") where needed; a
            column by metric, heading, or their beginning.

    Raises:
        UserError: when the table cannot be read, or has not exactly one such cell.

    """
    record = find_cell(table, cell)
    lines = [_headline(record)]
    if not record["ours"]:
        return "\n".join([*lines, f"There is no value of ours: {record['reason'] or 'nothing measures it'}."])
    sources = _sources(table, record)
    if not sources:
        lines += ["It is the mean of the other columns of its row; ask for each of those."]
    for source in sources:
        lines += ["", f"seed {source.seed}: {source.value:g}"]
        for link in _chain(source, record["metric"]):
            lines += ["", *link.lines()]
    if sources:
        lines += ["", f"To make it again: dseq-jepa why {table} --cell {shlex.quote(cell)} --script | bash"]
    return "\n".join(lines)


def script(table: Path, cell: str) -> str:
    """A shell script that makes the number again, beside the results, and prints both.

    Raises:
        UserError: as `explain`, and when nothing of ours was measured or a job's provenance is missing.

    """
    record = find_cell(table, cell)
    sources = _sources(table, record) if record["ours"] else []
    if not sources:
        raise UserError(f"{table}: {cell}: no run of ours measured this value, so there is nothing to make again.")
    lines = ["#!/usr/bin/env bash", f"# Makes {_headline(record)} again.", "set -euo pipefail", "AGAIN=${1:-again}"]
    for source in sources:
        lines += ["", *_commands(source, record["metric"])]
    return "\n".join(lines)


def find_cell(table: Path, cell: str) -> dict[str, str]:
    """The line of a table's CSV that ROW:COLUMN names; see `explain`."""
    row, colon, column = cell.rpartition(":")
    if not colon:
        raise UserError(f"--cell {cell}: expected ROW:COLUMN, such as dseq-jepa:cub.")
    records = _read(table)
    found = [record for record in records if _is_row(record, row)]
    if not found:
        names = dict.fromkeys(record["method"] or record["row"] for record in records)
        raise UserError(f"{table}: no row {row!r}; {nearest(row, names)}.")
    of_column = _best([(_fit(record, column), record) for record in found])
    if not of_column:
        raise UserError(f"{table}: no column {column!r}; {nearest(column, [r['metric'] for r in found])}.")
    ours = [record for record in of_column if record["ours"]]
    if len(ours or of_column) > 1:
        listed = ", ".join(f"{r['row']}/{r['architecture']}:{r['metric']}" for r in ours or of_column)
        raise UserError(f"{table}: {cell} is not one cell but {listed}; name one of these.")
    return (ours or of_column)[0]


def _read(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{table}: cannot be read: {(error.strerror or '').lower()}; `snakemake` makes it.") from None
    if not records or not {"metric", "label", "ours", "values", "run", "seeds"} <= records[0].keys():
        raise UserError(f"{table}: is not a table of this project; expected results/<config>/tables/<table>.csv.")
    return records


def _is_row(record: dict[str, str], wanted: str) -> bool:
    names = {record["method"], record["row"]}
    names |= {f"{name}/{record[size]}" for name in names for size in ("architecture", "own_architecture")}
    return wanted.casefold() in {name.casefold() for name in names}


def _fit(record: dict[str, str], column: str) -> int:
    """0 for the column's whole name, 1 for a beginning, 9 for neither."""
    names = [record["metric"].casefold(), record["label"].casefold()]
    wanted = column.casefold()
    return 0 if wanted in names else 1 if any(name.startswith(wanted) for name in names) else 9


def _best(fits: list[tuple[int, dict[str, str]]]) -> list[dict[str, str]]:
    lowest = min(fit for fit, _ in fits)
    return [record for fit, record in fits if fit == lowest < 9]


def _headline(record: dict[str, str]) -> str:
    ours = f"{float(record['ours']):.2f}" if record["ours"] else "-"
    if record["ours_sd"]:
        ours += f" ± {float(record['ours_sd']):.2f}"
    size = f" (ours: {record['own_architecture']})" if record["own_architecture"] else ""
    return (
        f"Table {record['table']}, {record['row']} {record['architecture']}{size}, {record['label']}: "
        f"{ours}, the paper {record['reported'] or '-'}"
    )


def _sources(table: Path, record: dict[str, str]) -> list[Source]:
    runs, seeds, values = (record[name].split() for name in ("run", "seeds", "values"))
    if not runs:
        return []
    results = table.parent.parent
    return [Source(results, run, seed, float(value)) for run, seed, value in zip(runs, seeds, values, strict=True)]


def _chain(source: Source, metric: str) -> Iterator[Link]:
    """From the measurement back to the pre-training."""
    measured = source.results / source.run
    made = _json(measured / FILE)
    yield _measurement(source, metric, made)
    name, _ = _evaluation(source, metric)
    of_cell = made.get("job", {}).get("evaluations", {}).get(name, {}).get("data")
    yield from _data(source.results, {key: found for key, found in made.get("data", {}).items() if key == of_cell})
    encoder = source.folder("export") / "encoder.safetensors"
    card = _json(encoder.with_suffix(".json"))
    link = Link("Encoder", encoder, warnings=_changed(encoder, made))
    origin = card.get("provenance", {})
    link.facts += [f"{card['architecture']['label']}, from {card['checkpoint']}"] if card else []
    yield link
    selection = _json(source.folder("export") / "selection.json")
    if not selection:
        return  # imported: its card is the end of the chain
    scores = source.folder("score") / "scores.json"
    yield Link("Choice of the checkpoint", scores, [selection["reason"], *_made(_json(scores.parent / FILE))])
    checkpoint = source.folder("pretrain") / Path(selection["chosen"]["file"]).name
    yield Link("Checkpoint", checkpoint, warnings=_not(origin.get("checkpoint_sha256"), checkpoint, "encoder's card"))
    yield _pretraining(source)
    yield from _data(source.results, _json(source.folder("pretrain") / FILE).get("data", {}))


def _measurement(source: Source, metric: str, made: dict[str, Any]) -> Link:
    path = source.results / source.run / "metrics.json"
    name, found = _evaluation(source, metric)
    link = Link("Measurement", path, _made(made))
    if found is None:
        link.warnings.append(f"no evaluation in this file has the value {source.value:g} any more")
        return link
    link.title = f"Measurement {name}"
    shown = {key: found[key] for key in ("value", "n", "chance", "features", "epochs", "learning_rate") if key in found}
    link.facts.insert(0, ", ".join(f"{key} {value}" for key, value in shown.items()))
    return link


def _evaluation(source: Source, metric: str) -> tuple[str, dict[str, Any] | None]:
    """The entry of metrics.json with this value; of several the one that is called most like the metric."""
    entries: dict[str, dict[str, Any]] = _json(source.results / source.run / "metrics.json").get("evaluations", {})
    equal = [name for name, entry in entries.items() if _holds(entry, source.value)]
    if not equal:
        return "", None
    words = set(metric.split("_"))
    name = max(equal, key=lambda name: len(words & set(name.split("-"))))
    return name, entries[name]


def _holds(entry: dict[str, Any], value: float) -> bool:
    """Whether an evaluation's main value, or one of its others, is this one."""
    return any(abs(known - value) < _SAME for known in (entry["value"], *entry.get("values", {}).values()))


def _pretraining(source: Source) -> Link:
    folder = source.folder("pretrain")
    run, made = _json(folder / "run.json"), _json(folder / FILE)
    facts = []
    if run:
        facts = [f"{run['steps']:,} steps on {run['images']:,} images, {run['seconds']:,} s on {run['ranks']} rank(s)"]
    return Link("Pre-training", folder / "run.json", facts + _made(made))


def _data(results: Path, read: dict[str, str | None]) -> Iterator[Link]:
    """The data sets that a job read, beside what the workflow found."""
    manifests = {path: _json(path) for path in sorted((results / "fingerprints").glob("*.json"))}
    for name, fingerprint in read.items():
        same = [path for path, found in manifests.items() if found["fingerprint"] == fingerprint]
        if not same:
            warning = "no data set of the workflow has this fingerprint now"
            yield Link(f"Data {name}", None, [f"fingerprint {fingerprint}"], [warning])
            continue
        found = manifests[same[0]]
        about = f"{found['title']} in {found['root']}; {found['hashed']}"
        yield Link(f"Data {name}", same[0], [f"fingerprint {fingerprint}", about])


def _made(made: dict[str, Any]) -> list[str]:
    """Code, configuration, machine and time of a job."""
    if not made:
        return ["its provenance.json is gone"]
    facts = [
        f"code {made['code_version']}, configuration {made['config_digest']}, "
        f"seed {made['job'].get('model', {}).get('seed', '-')}",
        f"{made['started']} on {made['host']} ({made['device']}, {made['processor']}, {made['threads']} thread(s)), "
        f"{made['seconds']:,} s",
        f"Python {made['python']}, torch {made['libraries'].get('torch', '-')}, pictures by {made['decoder']}",
    ]
    if made.get("code_diff"):
        facts.append(f"uncommitted changes of the code: {made['code_diff'].count(chr(10))} lines, in its {FILE}")
    return facts


def _changed(path: Path, made: dict[str, Any]) -> list[str]:
    """Whether a file is still the one that a job read."""
    read = {Path(name).name: digest for name, digest in made.get("inputs", {}).items()}
    return _not(read.get(path.name), path, "measurement's provenance")


def _not(expected: str | None, path: Path, says: str) -> list[str]:
    if expected is None:
        return [f"the {says} does not say which file it was"]
    if path.is_file() and file_sha256(path) != expected:
        return [f"the {says} says sha256 {expected}: this file was replaced since"]
    return []


def _commands(source: Source, metric: str) -> Iterator[str]:
    """The model's jobs one after another, as they were started, with their files below $AGAIN."""
    name, found = _evaluation(source, metric)
    steps = [step for step in ("pretrain", "score") if (source.folder(step) / FILE).is_file()]
    for step in steps:
        yield _again(source, source.folder(step))
    if steps:
        scores, export = (_moved(source, source.folder(step)) for step in ("score", "export"))
        yield f"dseq-jepa select --scores {scores}/scores.json --out {export}"
    yield _again(source, source.folder("export"))
    yield _again(source, source.results / source.run)
    if found is not None:
        value = f'json.load(open(sys.argv[1]))["evaluations"]["{name}"]["value"]'
        metrics = f"{_moved(source, source.results / source.run)}/metrics.json"
        yield f"python -c 'import json, sys; print(\"{name}: was {source.value:g}, is\", {value})' {metrics}"


def _again(source: Source, folder: Path) -> str:
    made = _json(folder / FILE)
    if not made:
        raise UserError(f"{folder / FILE}: missing, so the command that wrote this folder is not known; run it again.")
    return " ".join(["dseq-jepa", *(_moved(source, word) for word in made["command"][1:])])


def _moved(source: Source, word: str | Path) -> str:
    """A word of a command line; what lies in the model's folders is written and read below $AGAIN instead."""
    path = str(word)
    for root in (source.results.as_posix(), source.results.resolve().as_posix(), f"results/{source.results.name}"):
        if path.startswith(f"{root}/"):
            return f'"$AGAIN"/{shlex.quote(path[len(root) + 1 :])}'
    return shlex.quote(path)


def _json(path: Path) -> dict[str, Any]:
    """A JSON file's content; nothing where there is no file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); delete it and run its job again.") from None
    return content if isinstance(content, dict) else {}
