"""What happened and what is happening: the MLflow mirror, the state of the jobs, and where a number comes from."""

from pathlib import Path
from typing import Annotated

import typer

from dseq_jepa.cli.options import ConfigFile, Results
from dseq_jepa.cli.resolve import results_of

verbs = typer.Typer()


@verbs.command(epilog="Example: dseq-jepa sync --config configs/demo.yaml")
def sync(
    config: ConfigFile = None,
    results: Results = None,
    name: Annotated[
        str | None, typer.Option("--experiment", help="MLflow experiment; the configuration's unless given.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Receives a summary as JSON.")] = None,
) -> None:
    """Mirror the journals into MLflow: MLFLOW_TRACKING_URI, or mlflow.db in the results folder."""
    from dseq_jepa.tracking import sync as run

    folder, default = results_of(config, results)
    summary = run(folder, name or default, out=out)
    typer.echo(
        f"{summary.store}: experiment {summary.experiment} holds {summary.runs} runs and {summary.points:,} points; "
        f"{summary.new_runs} runs and {summary.new_points:,} points are new."
    )


@verbs.command(epilog="Example: dseq-jepa dashboard --config configs/demo.yaml")
def dashboard(
    config: ConfigFile = None,
    results: Results = None,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's own needs a password.")
    ] = "127.0.0.1",
    password_file: Annotated[
        Path | None, typer.Option(help="Password, in a file of mode 600; else DSEQ_DASHBOARD_PASSWORD.")
    ] = None,
) -> None:
    """Show the MLflow store of a results folder until Ctrl-C: on this machine, or with a password on --host."""
    from dseq_jepa.dashboard import dashboard as run

    run(results_of(config, results)[0], port, typer.echo, host, password_file)


@verbs.command(epilog="Example: dseq-jepa status --config configs/demo.yaml --watch")
def status(
    config: ConfigFile = None,
    results: Results = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until Ctrl-C.")] = False,
) -> None:
    """One line per job: what runs and how far, what failed and why, what is done."""
    from dseq_jepa.status import show

    show(results_of(config, results)[0], watch)


@verbs.command(epilog="Example: dseq-jepa follow --config configs/demo.yaml -- snakemake --cores 2")
def follow(
    command: Annotated[list[str], typer.Argument(help="The workflow's command, after --.")],
    config: ConfigFile = None,
    results: Results = None,
) -> None:
    """Run a workflow and show its jobs, how far they are and how long they need."""
    from dseq_jepa.follow import follow as run

    raise typer.Exit(run(results_of(config, results)[0], command))


@verbs.command(epilog="Example: dseq-jepa why results/demo/tables/table1.csv --cell dseq-jepa:cub")
def why(
    table: Annotated[Path, typer.Argument(help="results/<config>/tables/<table>.csv.")],
    cell: Annotated[str, typer.Option(help="ROW:COLUMN, such as dseq-jepa:cub.")],
    script: Annotated[bool, typer.Option("--script", help="Print the commands that make the number again.")] = False,
) -> None:
    """Say where a number comes from, down to file hashes, and how to make it again."""
    from dseq_jepa import why as reasons

    typer.echo(reasons.script(table, cell) if script else reasons.explain(table, cell))
