"""The command line: one verb per step of the pipeline.

    dseq-jepa --help
    dseq-jepa pretrain --config configs/demo.yaml --method dseq-jepa --out out/

A job is given either as `--settings` (JSON, what the workflow passes) or, by people, as `--config` with the names of a
method, an architecture and a seed; both resolve to the same job. Nothing heavy is imported before a verb runs.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dseq_jepa.errors import INTERRUPTED_CODE, StoppedError, UserError

if TYPE_CHECKING:
    from dseq_jepa.config import Experiment
    from dseq_jepa.data.settings import StageSettings
    from dseq_jepa.jobs import Job

Entry = TypeVar("Entry")
AnyJob = TypeVar("AnyJob", bound="Job")

app = typer.Typer(
    help="DSeq-JEPA: pre-train, select, export, evaluate, and fill the paper's tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Generate miniature data sets; check the real ones.", no_args_is_help=True)
app.add_typer(data, name="data")

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


def main() -> None:
    """Run a verb. A mistake that a person can put right ends with its sentence, anything else with a traceback."""
    try:
        app()
    except StoppedError as stopped:
        sys.stderr.write(f"{stopped}\n")
        sys.exit(INTERRUPTED_CODE)
    except UserError as error:
        sys.exit(f"error: {error}")


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Wait until no other process works in a folder.

    A job outlives a workflow that is killed; the next workflow's job then waits for it and finds its work done. The
    kernel drops the lock with the process. Ranks other than the first write nothing and need no lock.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            typer.echo(f"{out}: another process works in this folder; waiting for it to end.", err=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shown_live(job: "Job", out: Path) -> AbstractContextManager[object]:
    """Mirror the journal while the job runs, where MLFLOW_TRACKING_URI names a server."""
    from dseq_jepa.live import LiveMirror

    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    return LiveMirror(out, os.environ.get("MLFLOW_EXPERIMENT_NAME", job.model.experiment))


def _experiment(config: Path | None) -> "Experiment":
    from dseq_jepa.config import load

    if config is None:
        raise UserError("nothing says what to do: give --config FILE, or --settings JSON as the workflow does")
    return load(config)


def _first(given: str | None, entries: dict[str, Any]) -> str:
    return given if given is not None else next(iter(entries))


def _resolve(
    kind: type[AnyJob],
    settings: str | None,
    build: Callable[["Experiment", str, str, int], AnyJob],
    config: Path | None,
    names: tuple[str | None, str | None, int | None],
) -> AnyJob:
    """The job, from JSON or from a configuration and names."""
    if settings is not None:
        return kind.parse(settings)
    experiment = _experiment(config)
    method, architecture, seed = names
    return build(
        experiment,
        _first(method, experiment.methods),
        _first(architecture, experiment.architectures),
        experiment.seeds[0] if seed is None else seed,
    )


def _evaluation(kind: type[AnyJob], verb: str, group: str | None) -> Callable[["Experiment", str, str, int], AnyJob]:
    """How a group of evaluations is resolved for the verb that runs them."""

    def build(experiment: "Experiment", method: str, architecture: str, seed: int) -> AnyJob:
        from dseq_jepa.config import nearest
        from dseq_jepa.jobs import CostJob, cost_job, evaluate_job

        resolve = cost_job if kind is CostJob else evaluate_job
        groups = experiment.groups_of_kind(verb)
        name = group if group is not None else next(iter(groups), "")
        if name not in groups:
            raise UserError(f"--group: no evaluations of kind {verb} are in a group {name!r}; {nearest(name, groups)}")
        return kind.parse(resolve(experiment, name, method, architecture, seed).to_json())

    return build


def _refuse_other_encoder(encoder: Path, job: "Job") -> None:
    from dseq_jepa.models.weights import refuse_other_encoder

    refuse_other_encoder(encoder, job.model)


def _spread(job: "Job") -> None:
    """Start the configured number of processes, each with this same command, unless this is one of them already."""
    if job.compute.ranks > 1 and "RANK" not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.compute.ranks)]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "dseq_jepa", *sys.argv[1:]])  # noqa: S606


@app.command(epilog="Example: dseq-jepa pretrain --config configs/demo.yaml --method dseq-jepa --out out/")
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

    job = _resolve(PretrainJob, settings, pretrain_job, config, (method, architecture, seed))
    _spread(job)
    with _alone_in(out), _shown_live(job, out):
        from dseq_jepa.training.loop import pretrain as run

        run(job, out)


@app.command(
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

    job = _resolve(ScoreJob, settings, score_job, config, (method, architecture, seed))
    _spread(job)
    with _alone_in(out):
        from dseq_jepa.selection import score as run

        run(job, checkpoints, out)


@app.command(epilog="Example: dseq-jepa select --scores out/scores.json --out out/")
def select(
    out: Out,
    scores: Annotated[Path, typer.Option(help="scores.json of `dseq-jepa score`.")],
) -> None:
    """Choose the best checkpoint and say why."""
    from dseq_jepa.selection import select as run

    run(scores, out)


@app.command(epilog="Example: dseq-jepa export --selection out/selection.json --out out/")
def export(
    out: Out,
    selection: Annotated[Path, typer.Option(help="selection.json of `dseq-jepa select`.")],
) -> None:
    """Write the chosen target encoder as safetensors with timm's names, and a card beside it."""
    from dseq_jepa.models.weights import export_encoder

    export_encoder(selection, out)


@app.command(
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
    entries = _experiment(config).architectures
    (settings,) = _chosen("architectures", entries, _first(architecture, entries)).values()
    from dseq_jepa.models.imports import import_checkpoint

    import_checkpoint(checkpoint, settings, kind, out)


@app.command(
    epilog="Example: dseq-jepa probe --config configs/demo.yaml --group classify --method dseq-jepa "
    "--encoder out/encoder.safetensors --out out/"
)
def probe(
    encoder: EncoderFile,
    out: Out,
    settings: SettingsText = None,
    config: ConfigFile = None,
    group: GroupName = None,
    method: MethodName = None,
    architecture: ArchitectureName = None,
    seed: Seed = None,
) -> None:
    """Run a group of linear probes on a frozen encoder."""
    from dseq_jepa.jobs import ProbeJob

    job = _resolve(ProbeJob, settings, _evaluation(ProbeJob, "probe", group), config, (method, architecture, seed))
    _refuse_other_encoder(encoder, job)
    _spread(job)
    with _alone_in(out), _shown_live(job, out):
        from dseq_jepa.evaluation.probe import evaluate

        evaluate(job, encoder, out)


@app.command(
    epilog="Example: dseq-jepa finetune --config configs/demo.yaml --method dseq-jepa "
    "--encoder out/encoder.safetensors --out out/"
)
def finetune(
    encoder: EncoderFile,
    out: Out,
    settings: SettingsText = None,
    config: ConfigFile = None,
    group: GroupName = None,
    method: MethodName = None,
    architecture: ArchitectureName = None,
    seed: Seed = None,
) -> None:
    """Fine-tune the whole encoder for classification; the same command goes on after an interruption."""
    from dseq_jepa.jobs import FinetuneJob

    job = _resolve(
        FinetuneJob, settings, _evaluation(FinetuneJob, "finetune", group), config, (method, architecture, seed)
    )
    _refuse_other_encoder(encoder, job)
    _spread(job)
    with _alone_in(out), _shown_live(job, out):
        from dseq_jepa.evaluation.finetune import finetune as run

        run(job, encoder, out)


@app.command(
    epilog="Example: dseq-jepa segment --config configs/demo.yaml --method dseq-jepa "
    "--encoder out/encoder.safetensors --out out/"
)
def segment(
    encoder: EncoderFile,
    out: Out,
    settings: SettingsText = None,
    config: ConfigFile = None,
    group: GroupName = None,
    method: MethodName = None,
    architecture: ArchitectureName = None,
    seed: Seed = None,
) -> None:
    """Train and measure semantic segmentation with UPerNet; the same command goes on after an interruption."""
    from dseq_jepa.jobs import SegmentJob

    job = _resolve(
        SegmentJob, settings, _evaluation(SegmentJob, "segment", group), config, (method, architecture, seed)
    )
    _refuse_other_encoder(encoder, job)
    _spread(job)
    with _alone_in(out), _shown_live(job, out):
        from dseq_jepa.evaluation.segmentation import segment as run

        run(job, encoder, out)


@app.command(
    epilog="Example: dseq-jepa detect --config configs/demo.yaml --method dseq-jepa "
    "--encoder out/encoder.safetensors --out out/"
)
def detect(
    encoder: Annotated[Path, typer.Option(help="encoder.safetensors; its card lies beside it.")],
    out: Out,
    settings: SettingsText = None,
    config: ConfigFile = None,
    group: GroupName = None,
    method: MethodName = None,
    architecture: ArchitectureName = None,
    seed: Seed = None,
) -> None:
    """Train Mask R-CNN on an encoder and measure AP on COCO; the same command goes on after an interruption."""
    from dseq_jepa.jobs import DetectJob

    job = _resolve(DetectJob, settings, _evaluation(DetectJob, "detect", group), config, (method, architecture, seed))
    _refuse_other_encoder(encoder, job)
    _spread(job)
    with _alone_in(out), _shown_live(job, out):
        from dseq_jepa.evaluation.detection.job import detect as run

        run(job, encoder, out)


@app.command(
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
        experiment = _experiment(config)
        jobs = [table_job(experiment, name) for name in _chosen("tables", experiment.tables, table)]
        folder = results or experiment.directory
    for job in jobs:
        for path in write_table(job, folder, reported, out or folder / "tables"):
            typer.echo(path)


@app.command(epilog="Example: dseq-jepa cost --config configs/demo.yaml --method dseq-jepa --out out/")
def cost(
    out: Out,
    settings: SettingsText = None,
    config: ConfigFile = None,
    group: GroupName = None,
    method: MethodName = None,
    architecture: ArchitectureName = None,
    seed: Seed = None,
) -> None:
    """Measure what a pre-training costs: time, memory and multiply-adds of its real steps."""
    from dseq_jepa.jobs import CostJob

    job = _resolve(CostJob, settings, _evaluation(CostJob, "cost", group), config, (method, architecture, seed))
    _spread(job)
    with _alone_in(out):
        from dseq_jepa.cost.measure import measure

        measure(job, out)


@app.command(epilog="Example: dseq-jepa figures --config configs/demo.yaml --figure figure4")
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
        experiment = _experiment(config)
        jobs = [figure_job(experiment, name) for name in _chosen("figures", experiment.figures, figure)]
        folder = results or experiment.directory
    from dseq_jepa.figures.draw import write_figure

    for job in jobs:
        for path in write_figure(job, folder, out or folder / "figures"):
            typer.echo(path)


@app.command(epilog="Example: dseq-jepa sync --config configs/demo.yaml")
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

    folder, default = _results(config, results)
    summary = run(folder, name or default, out=out)
    typer.echo(
        f"{summary.store}: experiment {summary.experiment} holds {summary.runs} runs and {summary.points:,} points; "
        f"{summary.new_runs} runs and {summary.new_points:,} points are new."
    )


@app.command(epilog="Example: dseq-jepa dashboard --config configs/demo.yaml")
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

    run(_results(config, results)[0], port, typer.echo, host, password_file)


@app.command(epilog="Example: dseq-jepa status --config configs/demo.yaml --watch")
def status(
    config: ConfigFile = None,
    results: Results = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until Ctrl-C.")] = False,
) -> None:
    """One line per job: what runs and how far, what failed and why, what is done."""
    from dseq_jepa.status import show

    show(_results(config, results)[0], watch)


@app.command(epilog="Example: dseq-jepa follow --config configs/demo.yaml -- snakemake --cores 2")
def follow(
    command: Annotated[list[str], typer.Argument(help="The workflow's command, after --.")],
    config: ConfigFile = None,
    results: Results = None,
) -> None:
    """Run a workflow and show its jobs, how far they are and how long they need."""
    from dseq_jepa.follow import follow as run

    raise typer.Exit(run(_results(config, results)[0], command))


@app.command(epilog="Example: dseq-jepa why results/demo/tables/table1.csv --cell dseq-jepa:cub")
def why(
    table: Annotated[Path, typer.Argument(help="results/<config>/tables/<table>.csv.")],
    cell: Annotated[str, typer.Option(help="ROW:COLUMN, such as dseq-jepa:cub.")],
    script: Annotated[bool, typer.Option("--script", help="Print the commands that make the number again.")] = False,
) -> None:
    """Say where a number comes from, down to file hashes, and how to make it again."""
    from dseq_jepa import why as reasons

    typer.echo(reasons.script(table, cell) if script else reasons.explain(table, cell))


@app.command(
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
    needs = needs_of(params)
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


@app.command(epilog="Example: dseq-jepa plan --config configs/paper.yaml --nodes 4")
def plan(
    config: ConfigFile = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that may be used at once.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs (or processes) of one machine.")] = 8,
    reported: Annotated[Path, typer.Option(help="The paper's values.")] = Path("configs/reported_values.csv"),
) -> None:
    """Say what an experiment takes before it is started: jobs, GPU-hours, days, disk, missing data."""
    from dseq_jepa.plan import plan as run
    from dseq_jepa.plan import shown

    typer.echo(shown(run(_experiment(config), reported), nodes, gpus_per_node))


def _parsed(words: tuple[str, ...]) -> dict[str, Any]:
    """The options of a verb by name; a mistake in them is told before anything waits in a queue."""
    from typer.core import TyperGroup

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


@app.command(epilog="Example: dseq-jepa report --config configs/demo.yaml --reported configs/reported_values.csv")
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
        experiment = _experiment(config)
        job, folder = report_job(experiment), results or experiment.directory
    shown = sorted((folder / "figures").glob("*.png")) if figures is None else figures
    typer.echo(write_report(job, folder, reported, shown, out or folder / "report.html", incomplete=incomplete))


def _results(config: Path | None, results: Path | None) -> tuple[Path, str]:
    """A results folder and the name of its MLflow experiment."""
    if results is not None:
        return results, results.name
    experiment = _experiment(config)
    return experiment.directory, experiment.tracking.experiment or experiment.name


@data.command(epilog="Example: dseq-jepa data make-miniature --config configs/demo.yaml")
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
        experiment = _experiment(config)
        if experiment.miniature is None:
            raise UserError(f"{config}: has no `miniature`; its data sets are expected, not generated")
        recipe = experiment.miniature
        folders = {entry.root: entry.layout for entry in _chosen("data", experiment.data, name).values()}
    if out is not None and len(folders) > 1:
        raise UserError("--out takes one data set; name it with --data")
    for folder, official in folders.items():
        make_layout(official, folder, recipe)
        typer.echo(f"{folder}: generated in the layout of {official}")
        if out is not None:
            write_atomically(out, (folder / MARKER).read_text())


@data.command(epilog="Example: dseq-jepa data check --config configs/paper.yaml")
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
        entries = _chosen("data", _experiment(config).data, name)
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


@data.command("stage", epilog="Example: dseq-jepa data stage --config configs/paper.yaml --data imagenet")
def stage_(
    config: ConfigFile = None,
    name: Annotated[str | None, typer.Option("--data", help="An entry of `data`; all unless given.")] = None,
) -> None:
    """Copy data sets to this node's own disk (`loading.stage`) ahead of the jobs that read them."""
    from dseq_jepa.data.staging import staged

    experiment = _experiment(config)
    _stage_of(experiment, config)
    for key, entry in _chosen("data", experiment.data, name).items():
        typer.echo(f"data.{key}: {staged(entry, experiment.loading).root}")


@data.command(epilog="Example: dseq-jepa data unstage --config configs/paper.yaml")
def unstage(config: ConfigFile = None) -> None:
    """Remove the copies on this node's disk (`loading.stage`) that no process reads."""
    from dseq_jepa.data.staging import remove_unused

    for copy in remove_unused(_stage_of(_experiment(config), config)):
        typer.echo(f"{copy}: removed")


def _stage_of(experiment: "Experiment", config: Path | None) -> "StageSettings":
    if experiment.loading.stage is None:
        raise UserError(f"{config}: loading.stage: names no folder on the nodes' own disks; nothing is staged")
    return experiment.loading.stage


def _chosen(section: str, entries: dict[str, Entry], name: str | None) -> dict[str, Entry]:
    """All entries, or the one that is named."""
    from dseq_jepa.config import nearest

    if name is None:
        return entries
    if name not in entries:
        raise UserError(f"{section}: {name!r} is not defined; {nearest(name, entries)}")
    return {name: entries[name]}
