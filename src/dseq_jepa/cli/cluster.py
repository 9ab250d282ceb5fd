"""What an experiment takes, and running one command through a scheduler."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dseq_jepa.cli.options import ConfigFile
from dseq_jepa.cli.resolve import experiment_of
from dseq_jepa.errors import UserError

verbs = typer.Typer()


@verbs.command(
    epilog="Example: dseq-jepa launch --minutes 1440 --partition gpu -- pretrain --config configs/paper.yaml --out out/"
)
def launch(
    command: Annotated[list[str], typer.Argument(help="After `--`: a verb of dseq-jepa with its options.")],
    cluster: Annotated[
        str, typer.Option(help="slurm, local (a process of this machine) or debug (this one).")
    ] = "slurm",
    minutes: Annotated[int, typer.Option(min=1, help="Time limit; the job saves and starts again.")] = 60,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Ranks per node; compute.ranks over --nodes unless given.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs per node; one per rank on compute.device cuda.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores per rank; threads and loading workers.")] = None,
    mem_mb: Annotated[
        int | None, typer.Option(min=0, help="Memory per node, 0 for all of it; the partition's unless given.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Of the cluster.")] = None,
    account: Annotated[str | None, typer.Option(help="That is charged.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features of the nodes, such as h200.")] = None,
    max_requeues: Annotated[int, typer.Option(min=0, help="How often it may start again.")] = 20,
    signal_seconds: Annotated[int, typer.Option(min=1, help="Warning before the time limit.")] = 120,
    python: Annotated[str | None, typer.Option(help="Interpreter of another environment that runs the verb.")] = None,
) -> None:
    """Run a command on the cluster and wait for it; run again, it attaches to the job that is there."""
    from dseq_jepa.cluster.launch import launch as run
    from dseq_jepa.cluster.order import Order, Resources, needs_of, place_of

    if cluster not in ("slurm", "local", "debug"):
        raise UserError(f"--cluster {cluster}: expected slurm, local or debug")
    words = tuple(command[1:] if command[0] == "dseq-jepa" else command)
    params = _parsed(words)
    needs = needs_of(words[0], params)
    if tasks is None and needs.ranks % nodes:
        raise UserError(f"--nodes {nodes} cannot share compute.ranks {needs.ranks} equally; change either")
    tasks = tasks or needs.ranks // nodes
    resources = Resources(
        minutes, nodes, tasks, tasks * needs.gpus if gpus is None else gpus, cpus or needs.cpus,
        mem_mb, partition, account, qos, constraint, max_requeues, signal_seconds,
    )  # fmt: skip
    order = Order(
        words, place_of(params, words), resources, cluster, needs.save_minutes, _interpreter(python)  # type: ignore[arg-type]
    )  # fmt: skip
    sys.exit(run(order))


def _interpreter(python: str | None) -> str:
    """The path of a program, for the nodes may look for its name elsewhere; this interpreter's unless one is given."""
    if python is None:
        return sys.executable
    found = shutil.which(python)
    if found is None:
        raise UserError(f"--python {python}: there is no such program")
    return os.path.abspath(found)


@verbs.command(epilog="Example: dseq-jepa plan --config configs/paper.yaml --nodes 4")
def plan(
    config: ConfigFile = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that may be used at once.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs (or processes) of one machine.")] = 8,
    reported: Annotated[Path, typer.Option(help="The paper's values.")] = Path("configs/reported_values.csv"),
) -> None:
    """Say what an experiment takes before it is started: jobs, GPU-hours, days, disk, missing data."""
    from dseq_jepa.plan import plan as run
    from dseq_jepa.plan import shown

    typer.echo(shown(run(experiment_of(config), reported), nodes, gpus_per_node))


def _parsed(words: tuple[str, ...]) -> dict[str, Any]:
    """The options of a verb by name; a mistake in them is told before anything waits in a queue."""
    from typer.core import TyperGroup

    from dseq_jepa.cli import app  # all verbs, these among them

    command = typer.main.get_command(app)
    rest, names = list(words), []
    while isinstance(command, TyperGroup):
        name = rest.pop(0) if rest else ""
        names.append(name)
        found = command.commands.get(name)
        if found is None or name == "launch":
            raise UserError(f"launch: {' '.join(names)!r} is no verb that can be launched; see dseq-jepa --help")
        command = found
    with command.make_context(" ".join(["dseq-jepa", *names]), rest) as context:
        return dict(context.params)
