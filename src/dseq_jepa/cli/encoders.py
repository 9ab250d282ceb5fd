"""From pictures to an encoder: pre-train, score, select, export, or import a published one."""

from pathlib import Path
from typing import Annotated

import typer

from dseq_jepa.cli.options import ArchitectureName, ConfigFile, MethodName, Out, Seed, SettingsText
from dseq_jepa.cli.resolve import chosen, experiment_of, first, resolve
from dseq_jepa.cli.running import alone_in, shown_live, spread

verbs = typer.Typer()


@verbs.command(epilog="Example: dseq-jepa pretrain --config configs/demo.yaml --method dseq-jepa --out out/")
def pretrain(
    out: Out,
    settings: SettingsText = None,
    config: ConfigFile = None,
    method: MethodName = None,
    architecture: ArchitectureName = None,
    seed: Seed = None,
) -> None:
    """Pre-train one method on one architecture; the same command goes on after an interruption."""
    from dseq_jepa.jobs import PretrainJob, pretrain_job

    job = resolve(PretrainJob, settings, pretrain_job, config, (method, architecture, seed))
    spread(job)
    with alone_in(out), shown_live(job, out):
        from dseq_jepa.training.loop import pretrain as run

        run(job, out)


@verbs.command(
    epilog="Example: dseq-jepa score --config configs/demo.yaml --method dseq-jepa --out out/ out/*.safetensors"
)
def score(
    checkpoints: Annotated[list[Path], typer.Argument(help="Kept checkpoints of one pre-training.")],
    out: Out,
    settings: SettingsText = None,
    config: ConfigFile = None,
    method: MethodName = None,
    architecture: ArchitectureName = None,
    seed: Seed = None,
) -> None:
    """Score kept checkpoints by nearest neighbours on a held-out slice of the training set."""
    from dseq_jepa.jobs import ScoreJob, score_job

    job = resolve(ScoreJob, settings, score_job, config, (method, architecture, seed))
    spread(job)
    with alone_in(out):
        from dseq_jepa.selection import score as run

        run(job, checkpoints, out)


@verbs.command(epilog="Example: dseq-jepa select --scores out/scores.json --out out/")
def select(
    out: Out,
    scores: Annotated[Path, typer.Option(help="scores.json of `dseq-jepa score`.")],
) -> None:
    """Choose the best checkpoint and say why."""
    from dseq_jepa.selection import select as run

    run(scores, out)


@verbs.command(epilog="Example: dseq-jepa export --selection out/selection.json --out out/")
def export(
    out: Out,
    selection: Annotated[Path, typer.Option(help="selection.json of `dseq-jepa select`.")],
) -> None:
    """Write the chosen target encoder as safetensors with timm's names, and a card beside it."""
    from dseq_jepa.models.weights import export_encoder

    export_encoder(selection, out)


@verbs.command(
    "import",
    epilog="Example: dseq-jepa import --kind mae --checkpoint mae_pretrain_vit_base.pth --config configs/paper.yaml "
    "--architecture vit-b16 --out out/",
)
def import_(
    out: Out,
    kind: Annotated[str, typer.Option(help="Who published it: timm, mae, dino, ibot or ijepa.")],
    checkpoint: Annotated[Path, typer.Option(help="The published file; nothing in it is executed.")],
    config: ConfigFile = None,
    architecture: ArchitectureName = None,
) -> None:
    """Turn a published checkpoint into an encoder that every evaluation takes."""
    entries = experiment_of(config).architectures
    (settings,) = chosen("architectures", entries, first(architecture, entries)).values()
    from dseq_jepa.models.imports import import_checkpoint

    import_checkpoint(checkpoint, settings, kind, out)
