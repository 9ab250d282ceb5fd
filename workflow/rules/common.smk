# What the rules share: the checked configuration, the paths of artefacts, and what each job is given.
import fcntl
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from dseq_jepa import jobs
from dseq_jepa.cluster.notify import notify
from dseq_jepa.cluster.order import prefix
from dseq_jepa.config import from_mapping, read_yaml
from dseq_jepa.errors import UserError
from dseq_jepa.figures.job import figure_job, shown_models
from dseq_jepa.invocation import Invocation
from dseq_jepa.report.job import report_job
from dseq_jepa.tables.job import table_job

# Jobs run the `dseq-jepa` that belongs to the interpreter which runs Snakemake, activated environment or not.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def checked(config):
    """The typed configuration, or one error before anything is planned."""
    files = [os.path.relpath(file) for file in workflow.configfiles]
    try:
        for file in files:
            read_yaml(file)  # finds keys that are written twice, of which Snakemake's reader keeps the last
        return from_mapping(config, ", ".join(files))
    except UserError as error:
        raise WorkflowError(str(error)) from None


EXPERIMENT = checked(config)
RESULTS = EXPERIMENT.directory.as_posix()
REPORTED = os.path.relpath(Path(workflow.basedir).parent / "configs" / "reported_values.csv")
ENVIRONMENT = "../envs/dseq-jepa.yml"
USES_DETECTRON2 = any(getattr(entry, "engine", "") == "detectron2" for entry in EXPERIMENT.evaluations.values())
DETECTION_ENVIRONMENT = "../envs/detectron2.yml" if USES_DETECTRON2 else ENVIRONMENT
THREADS = EXPERIMENT.compute.threads
RANKS = EXPERIMENT.compute.ranks
# What all processes of a job take. Not `threads`, which Snakemake counts against the cores of where it runs itself, also
# where `dseq-jepa launch` asks for the cores elsewhere.
CORES = RANKS * (THREADS + EXPERIMENT.loading.workers)
GPUS = RANKS * (EXPERIMENT.compute.device == "cuda")
EXPERIMENT_NAME = EXPERIMENT.tracking.experiment or EXPERIMENT.name
os.environ.update(
    MLFLOW_EXPERIMENT_NAME=EXPERIMENT_NAME
)  # where a job with a tracking server shows itself while it runs
LAUNCH = os.environ.get("DSEQ_LAUNCH", "")


wildcard_constraints:
    dataset="|".join(EXPERIMENT.data),
    method="|".join(EXPERIMENT.methods),
    architecture="|".join(EXPERIMENT.architectures),
    group="|".join(EXPERIMENT.groups),
    table="|".join(EXPERIMENT.tables),
    figure="|".join(EXPERIMENT.figures) or "(?!)",
    seed=r"\d+",


def at(path):
    """A path of this experiment's results."""
    return f"{RESULTS}/{path}"


def of_model(step, file):
    """An artefact of one model: results/<experiment>/<step>/<method>/<architecture>/seed<seed>/<file>."""
    return at(f"{step}/{{method}}/{{architecture}}/seed{{seed}}/{file}")


def log_of(step):
    """Where a model's job writes what it has to say."""
    return at(f"logs/{step}/{{method}}/{{architecture}}/seed{{seed}}.log")


def benchmark_of(step):
    """Where Snakemake writes a model's job's time and memory."""
    return at(f"benchmarks/{step}/{{method}}/{{architecture}}/seed{{seed}}.tsv")


def checkpoints():
    """The kept checkpoints of a pre-training."""
    percents = EXPERIMENT.selection.keep_percent
    return [of_model("pretrain", f"checkpoint-{percent:03d}.safetensors") for percent in percents]


def fingerprint(dataset):
    """The manifest that stands for a data set; jobs depend on it, so a plan needs no data."""
    return at(f"fingerprints/{dataset}.json")


def generated(wildcards):
    """What must be generated before a data set can be checked: nothing, unless it is a miniature."""
    return [at(f"data/{wildcards.dataset}.json")] if EXPERIMENT.miniature else []


def datasets_of(group):
    """The data sets that a group of evaluations reads."""
    return sorted({EXPERIMENT.evaluations[name].data for name in EXPERIMENT.groups[group]})


def fingerprints_of_group(wildcards):
    """The manifests of the data sets that a group of evaluations reads."""
    return [fingerprint(dataset) for dataset in datasets_of(wildcards.group)]


def groups_of_kind(kind):
    """Constraint of a group's wildcard: the groups that one rule runs."""
    return "|".join(EXPERIMENT.groups_of_kind(kind)) or "(?!)"


def groups_of(table):
    """The groups that measure a table's columns."""
    return sorted({EXPERIMENT.group_of(column.evaluation) for column in table.columns if column.evaluation})


def models_of(table):
    """Method and architecture of every row that a run of ours fills."""
    return sorted({(row.method, row.architecture) for row in table.rows if row.method})


def expand_models(path, models):
    """A path of every model, for every seed."""
    return [
        path.format(method=method, architecture=architecture, seed=seed)
        for method, architecture in models
        for seed in EXPERIMENT.seeds
    ]


def metrics_of(table):
    """The measurements that a table shows."""
    files = [of_model(f"evaluate/{group}", "metrics.json") for group in groups_of(table)]
    return [path for file in files for path in expand_models(file, models_of(table))]


def metrics_of_table(wildcards):
    """The measurements that the table of a job shows."""
    return metrics_of(EXPERIMENT.tables[wildcards.table])


def records_of_table(wildcards):
    """The records of single test images that the table of a job resamples."""
    return [
        path.replace("metrics.json", "records.csv.gz") for path in metrics_of_table(wildcards) if of_test_images(path)
    ]


def files_of(names):
    """The files of tables, by name."""
    return [at(f"tables/{name}.{kind}") for name in names for kind in ("csv", "md", "tex", "html")]


def files_of_figures(names):
    """The files of figures, by name."""
    return [at(f"figures/{name}.{kind}") for name in names for kind in ("png", "pdf", "caption.md")]


def of_figure(wildcards, file):
    """An artefact of every run that a figure shows."""
    models = figure_job(EXPERIMENT, wildcards.figure).models
    return [file.format(method=model.method, architecture=model.architecture, seed=model.seed) for model in models]


def checkpoints_of_figure(wildcards):
    """The kept checkpoints that a figure shows."""
    percents = figure_job(EXPERIMENT, wildcards.figure).kept
    files = [of_model("pretrain", f"checkpoint-{percent:03d}.safetensors") for percent in percents]
    return [path for file in files for path in of_figure(wildcards, file)]


def runs_of_figure(wildcards):
    """The pre-trainings whose journals a figure shows, by the file that says that they are finished."""
    job = figure_job(EXPERIMENT, wildcards.figure)
    return [] if job.kept else of_figure(wildcards, of_model("pretrain", "run.json"))


def every_metric():
    """Measurements of all tables; a model that two tables need appears once."""
    return sorted({path for table in EXPERIMENT.tables.values() for path in metrics_of(table)})


def of_kind(metrics, *kinds):
    """Whether a measurement is of one of some kinds."""
    return any(f"/evaluate/{group}/" in metrics for kind in kinds for group in EXPERIMENT.groups_of_kind(kind))


def of_test_images(metrics):
    """Whether a measurement leaves a line per test image; a cost does not."""
    return not of_kind(metrics, "cost")


SHOWING_EXAMPLES = ("segment", "detect")  # kinds of evaluation that draw examples.png, a page for people to look at


def every_example():
    """The pages that evaluations draw of test pictures, truth and prediction."""
    return [path.replace("metrics.json", "examples.png") for path in every_metric() if of_kind(path, *SHOWING_EXAMPLES)]


def datasets_in_use():
    """The data sets that any job of any table or figure reads."""
    used = [table for table in EXPERIMENT.tables.values() if models_of(table)]
    measured = {dataset for table in used for group in groups_of(table) for dataset in datasets_of(group)}
    pretrained = used or EXPERIMENT.figures
    return sorted(measured | ({EXPERIMENT.pretraining_data} if pretrained else set()))


def models_of_tables():
    """Method and architecture of every row of any table that a run of ours fills."""
    return sorted({model for table in EXPERIMENT.tables.values() for model in models_of(table)})


def of_every_pretraining(file):
    """An artefact of every pre-training; models that only figures show are pre-trained, and nothing else."""
    shown = {
        file.format(method=model.method, architecture=model.architecture, seed=model.seed)
        for model in shown_models(EXPERIMENT)
    }
    return sorted(shown | set(expand_models(file, models_of_tables())))


def every_artefact():
    """Every declared file, so that whatever is missing is made again, with what depends on it."""
    files = [
        of_model("score", "scores.json"),
        *(of_model("export", file) for file in ("selection.json", "encoder.safetensors", "encoder.json")),
    ]
    measured = every_metric()
    datasets = datasets_in_use()
    return [
        *(at(f"data/{dataset}.json") for dataset in datasets if EXPERIMENT.miniature),
        *(fingerprint(dataset) for dataset in datasets),
        *(path for file in checkpoints() for path in of_every_pretraining(file)),
        *every_run(),
        *(path for file in files for path in expand_models(file, models_of_tables())),
        *measured,
        *(path.replace("metrics.json", "records.csv.gz") for path in measured if of_test_images(path)),
        *every_example(),
        *(path.replace("metrics.json", "predictions.json.gz") for path in measured if of_kind(path, "detect")),
        *files_of(EXPERIMENT.tables),
        *files_of_figures(EXPERIMENT.figures),
        at("report.html"),
        at("tracking/synced.json"),
    ]


def report_settings(wildcards):
    """What the job of the report is given."""
    return report_job(EXPERIMENT).to_json()


def every_run():
    """The finished pre-trainings, whose journals are mirrored."""
    return of_every_pretraining(of_model("pretrain", "run.json"))


def miniature_of(wildcards):
    """How miniature data sets are generated."""
    return jobs.canonical(EXPERIMENT.miniature.model_dump(mode="json"))


def root_of(wildcards):
    """Folder of a data set."""
    return EXPERIMENT.data[wildcards.dataset].root.as_posix()


def layout_of(wildcards):
    """Official layout of a data set."""
    return EXPERIMENT.data[wildcards.dataset].layout


def data_of(wildcards):
    """A data set's entry."""
    return jobs.canonical(EXPERIMENT.data[wildcards.dataset].model_dump(mode="json"))


def table_of(wildcards):
    """What the job of a table is given."""
    return table_job(EXPERIMENT, wildcards.table).to_json()


def gpus_of_figure(wildcards):
    """One, for the job is one process; a figure of journals needs none."""
    return min(1, GPUS) if figure_job(EXPERIMENT, wildcards.figure).kept else 0


def digest_of_figure(wildcards):
    """What identifies a figure."""
    return figure_job(EXPERIMENT, wildcards.figure).digest


def settings_of_figure(wildcards, input):
    """What the job of a figure is given."""
    return figure_job(EXPERIMENT, wildcards.figure).to_json()


# A job is given its settings as JSON. What Snakemake records, and reruns a job for when it changes, is their digest:
# settings that cannot change a result (loading workers, labels, how often state is saved) are not part of it. Snakemake
# does not record a parameter whose function asks for `input`, `output` or `resources`.
def job_of(step, wildcards):
    """The settings of a job."""
    model = (wildcards.method, wildcards.architecture, int(wildcards.seed))
    match step:
        case "pretrain":
            return jobs.pretrain_job(EXPERIMENT, *model)
        case "score":
            return jobs.score_job(EXPERIMENT, *model)
        case "evaluate":
            return jobs.evaluate_job(EXPERIMENT, wildcards.group, *model)
        case "cost":
            return jobs.cost_job(EXPERIMENT, wildcards.group, *model)


def digest_of(step):
    """What identifies a job's result."""
    return lambda wildcards: job_of(step, wildcards).digest


def settings_of(step):
    """What a job is given: its settings, with the fingerprints of the data that it reads."""
    return lambda wildcards, input: with_fingerprints(job_of(step, wildcards), input.data).to_json()


def with_fingerprints(job, manifests):
    """The job, which starts over and does not go on when the data changed."""
    paths = [manifests] if isinstance(manifests, str) else manifests
    found = {Path(path).stem: json.loads(open(path).read())["fingerprint"] for path in paths}
    if isinstance(job, jobs.EvaluateJob):
        data = {name: entry.model_copy(update={"fingerprint": found[name]}) for name, entry in job.data.items()}
    else:
        data = job.data.model_copy(update={"fingerprint": found[EXPERIMENT.pretraining_data]})
    return job.model_copy(update={"data": data})


def launch(wildcards, resources):
    """What stands before every job's command: `dseq-jepa launch ... --` where a profile gives the resource `launcher`
    (profiles/slurm); otherwise nothing, or $DSEQ_LAUNCH, such as `nice -n 19`.
    """
    return prefix(dict(resources.items())) or LAUNCH


def detection_command(wildcards, resources):
    """`dseq-jepa` with what stands before it. In detectron2's own environment, where the package is not installed, that
    environment's interpreter runs it from this checkout, while the usual one launches it.
    """
    if not (USES_DETECTRON2 and "conda" in map(str, workflow.deployment_settings.deployment_method)):
        return f"{launch(wildcards, resources)} dseq-jepa"
    source = shlex.quote(f"PYTHONPATH={Path(workflow.basedir).parent / 'src'}")
    launched = prefix(dict(resources.items()), python="python")
    return f"env {source} {launched} dseq-jepa" if launched else f"{LAUNCH} env {source} python -m dseq_jepa"


def begin():
    """Hold the lock and write down what this invocation does; its jobs name it in their journals."""
    global INVOCATION
    hold_lock()
    INVOCATION = Invocation(Path(RESULTS), EXPERIMENT_NAME)


def end(failed):
    """Close the invocation's journal; a failure is mirrored at once, for the workflow's own mirroring did not run.
    $DSEQ_NOTIFY is run in both cases.
    """
    INVOCATION.end(failed)
    notify(f"{EXPERIMENT.name} {'failed' if failed else 'finished'}")
    if failed:
        command = ["dseq-jepa", "sync", "--results", RESULTS, "--experiment", EXPERIMENT_NAME]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def hold_lock():
    """One run at a time per experiment. The kernel drops the lock with the process, so a kill leaves nothing behind;
    Snakemake's own lock (off in the profile) would have to be removed by hand.
    """
    global LOCK
    os.makedirs(RESULTS, exist_ok=True)
    LOCK = open(at(".lock"), "w")
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(f"{RESULTS}: another run of this experiment is at work; wait for it or stop it.") from None
