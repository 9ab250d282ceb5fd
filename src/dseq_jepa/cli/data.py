"""Data sets: generate, check, and copy to a node's own disk."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dseq_jepa.cli.options import ConfigFile
from dseq_jepa.cli.resolve import chosen, experiment_of
from dseq_jepa.errors import UserError

if TYPE_CHECKING:
    from dseq_jepa.config import Experiment
    from dseq_jepa.data.settings import StageSettings

verbs = typer.Typer(help="Generate miniature data sets; check the real ones.", no_args_is_help=True)


@verbs.command(epilog="Example: dseq-jepa data make-miniature --config configs/demo.yaml")
def make_miniature(
    config: ConfigFile = None,
    name: Annotated[str | None, typer.Option("--data", help="An entry of `data`; all unless given.")] = None,
    settings: Annotated[str | None, typer.Option(help="`miniature` as JSON, from the workflow.")] = None,
    layout: Annotated[str | None, typer.Option(help="With --settings: which official layout.")] = None,
    root: Annotated[Path | None, typer.Option(help="With --settings: folder of the data set.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Receives what was generated as JSON.")] = None,
) -> None:
    """Generate small data sets in the official layouts, the same bytes every time."""
    from dseq_jepa.data.miniature import MARKER, WRITERS, make_layout
    from dseq_jepa.data.settings import MiniatureSettings
    from dseq_jepa.files import write_atomically

    if settings is not None:
        if root is None or layout not in WRITERS:
            raise UserError(f"--settings needs --root FOLDER and --layout, one of {', '.join(WRITERS)}")
        recipe, folders = MiniatureSettings.model_validate_json(settings), {root: layout}
    else:
        experiment = experiment_of(config)
        if experiment.miniature is None:
            raise UserError(f"{config}: has no `miniature`; its data sets are expected, not generated")
        recipe = experiment.miniature
        folders = {entry.root: entry.layout for entry in chosen("data", experiment.data, name).values()}
    if out is not None and len(folders) > 1:
        raise UserError("--out takes one data set; name it with --data")
    for folder, official in folders.items():
        make_layout(official, folder, recipe)
        typer.echo(f"{folder}: generated in the layout of {official}")
        if out is not None:
            write_atomically(out, (folder / MARKER).read_text())


@verbs.command(epilog="Example: dseq-jepa data check --config configs/paper.yaml")
def check(
    config: ConfigFile = None,
    settings: Annotated[str | None, typer.Option(help="A data set's entry as JSON, from the workflow.")] = None,
    name: Annotated[str | None, typer.Option("--data", help="An entry of `data`; all unless given.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Hash every byte, not a sample.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Receives the manifest of the data set as JSON.")] = None,
) -> None:
    """Say per data set whether it is there, in which layout it is expected and where to get it."""
    from dseq_jepa.data.catalog import check as run
    from dseq_jepa.data.settings import DatasetSettings
    from dseq_jepa.files import write_atomically

    if settings is None:
        entries = chosen("data", experiment_of(config).data, name)
    elif name is not None:
        entries = {name: DatasetSettings.model_validate_json(settings)}
    else:
        raise UserError("--settings describes one data set; give its name with --data")
    if out is not None and len(entries) > 1:
        raise UserError("--out takes the manifest of one data set; name it with --data")
    problems = []
    for key, entry in entries.items():
        try:
            manifest = run(key, entry, full=full)
        except UserError as error:
            problems.append(str(error))
            continue
        images = manifest["images"]
        typer.echo(f"data.{key} ({manifest['title']}): {images['train']:,} + {images['val']:,} pictures, as expected")
        if out is not None:
            write_atomically(out, json.dumps(manifest, indent=1) + "\n")
    if problems:
        raise UserError("\n".join(problems))


@verbs.command("stage", epilog="Example: dseq-jepa data stage --config configs/paper.yaml --data imagenet")
def stage_(
    config: ConfigFile = None,
    name: Annotated[str | None, typer.Option("--data", help="An entry of `data`; all unless given.")] = None,
) -> None:
    """Copy data sets to this node's own disk (`loading.stage`) ahead of the jobs that read them."""
    from dseq_jepa.data.staging import staged

    experiment = experiment_of(config)
    _stage_of(experiment, config)
    for key, entry in chosen("data", experiment.data, name).items():
        typer.echo(f"data.{key}: {staged(entry, experiment.loading).root}")


@verbs.command(epilog="Example: dseq-jepa data unstage --config configs/paper.yaml")
def unstage(config: ConfigFile = None) -> None:
    """Remove the copies on this node's disk (`loading.stage`) that no process reads."""
    from dseq_jepa.data.staging import remove_unused

    for copy in remove_unused(_stage_of(experiment_of(config), config)):
        typer.echo(f"{copy}: removed")


def _stage_of(experiment: "Experiment", config: Path | None) -> "StageSettings":
    if experiment.loading.stage is None:
        raise UserError(f"{config}: loading.stage: names no folder on the nodes' own disks; nothing is staged")
    return experiment.loading.stage
