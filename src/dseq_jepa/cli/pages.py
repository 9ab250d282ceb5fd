"""What a reader sees: tables, figures and the report."""

from pathlib import Path
from typing import Annotated

import typer

from dseq_jepa.cli.options import ConfigFile, Results, SettingsText
from dseq_jepa.cli.resolve import chosen, experiment_of
from dseq_jepa.errors import UserError

verbs = typer.Typer()


@verbs.command(
    epilog="Example: dseq-jepa tables --config configs/demo.yaml --table table1 --reported configs/reported_values.csv"
)
def tables(
    reported: Annotated[Path, typer.Option(help="The paper's values, configs/reported_values.csv.")],
    settings: SettingsText = None,
    config: ConfigFile = None,
    table: Annotated[str | None, typer.Option(help="An entry of `tables`; all unless given.")] = None,
    results: Results = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; <results>/tables unless given.")
    ] = None,
) -> None:
    """Write tables from measurements, beside the paper's values: CSV, Markdown, LaTeX and HTML."""
    from dseq_jepa.tables.job import TableJob, table_job
    from dseq_jepa.tables.render import write_table

    if settings is not None:
        if results is None:
            raise UserError("--settings describes a table and not where its measurements are; give --results")
        jobs, folder = [TableJob.parse(settings)], results
    else:
        experiment = experiment_of(config)
        jobs = [table_job(experiment, name) for name in chosen("tables", experiment.tables, table)]
        folder = results or experiment.directory
    for job in jobs:
        for path in write_table(job, folder, reported, out or folder / "tables"):
            typer.echo(path)


@verbs.command(epilog="Example: dseq-jepa figures --config configs/demo.yaml --figure figure4")
def figures(
    settings: SettingsText = None,
    config: ConfigFile = None,
    figure: Annotated[str | None, typer.Option(help="An entry of `figures`; all unless given.")] = None,
    results: Results = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; <results>/figures unless given.")
    ] = None,
) -> None:
    """Draw figures from kept checkpoints, pictures and journals: PNG, PDF and a caption."""
    from dseq_jepa.figures.job import FigureJob, figure_job

    if settings is not None:
        if results is None:
            raise UserError("--settings describes a figure and not where its checkpoints are; give --results")
        jobs, folder = [FigureJob.parse(settings)], results
    else:
        experiment = experiment_of(config)
        jobs = [figure_job(experiment, name) for name in chosen("figures", experiment.figures, figure)]
        folder = results or experiment.directory
    from dseq_jepa.figures.draw import write_figure

    for job in jobs:
        for path in write_figure(job, folder, out or folder / "figures"):
            typer.echo(path)


@verbs.command(epilog="Example: dseq-jepa report --config configs/demo.yaml --reported configs/reported_values.csv")
def report(
    reported: Annotated[Path, typer.Option(help="The paper's values, configs/reported_values.csv.")],
    figures: Annotated[
        list[Path] | None, typer.Argument(help="PNG files to show; all of <results>/figures unless given.")
    ] = None,
    settings: SettingsText = None,
    config: ConfigFile = None,
    results: Results = None,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Name tables whose measurements are missing and go on without them.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; <results>/report.html unless given.")
    ] = None,
) -> None:
    """Write one page about everything that was measured; it opens without a network."""
    from dseq_jepa.report.job import ReportJob, report_job
    from dseq_jepa.report.page import write_report

    if settings is not None:
        if results is None:
            raise UserError("--settings describes a report and not where its measurements are; give --results")
        job, folder = ReportJob.parse(settings), results
    else:
        experiment = experiment_of(config)
        job, folder = report_job(experiment), results or experiment.directory
    shown = sorted((folder / "figures").glob("*.png")) if figures is None else figures
    typer.echo(write_report(job, folder, reported, shown, out or folder / "report.html", incomplete=incomplete))
