"""Options that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

SettingsText = Annotated[str | None, typer.Option("--settings", help="The resolved job as JSON, from the workflow.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file to resolve the job from.")]
MethodName = Annotated[str | None, typer.Option("--method", help="An entry of `methods`; the first unless given.")]
ArchitectureName = Annotated[
    str | None, typer.Option("--architecture", help="An entry of `architectures`; the first unless given.")
]
GroupName = Annotated[
    str | None, typer.Option("--group", help="A group of `evaluations`; the first of this kind unless given.")
]
EncoderFile = Annotated[Path, typer.Option("--encoder", help="encoder.safetensors; its card lies beside it.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The first of `seeds` unless given.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Results = Annotated[Path | None, typer.Option("--results", help="results/<config>; the configuration's unless given.")]
