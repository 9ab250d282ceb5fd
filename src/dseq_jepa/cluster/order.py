"""What is asked of the scheduler: one command of the package and the resources that it needs.

order = Order(words=("pretrain", "--config", ...), place=out, resources=Resources(minutes=1440, partition="gpu"))
prefix({"launcher": "slurm", "runtime": 60, "mem_mb": 8000})     # what the workflow puts before a command
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.saving import PROBE_SECONDS, TUNING_SECONDS
from dseq_jepa.fence import Claims

Cluster = Literal["slurm", "local", "debug"]


@dataclass(frozen=True)
class Resources:
    """What one job gets."""

    minutes: int = 60
    """Time limit; a job that reaches it saves and is started again."""
    nodes: int = 1
    tasks: int = 1
    """Processes per node, one rank each."""
    gpus: int = 0
    """GPUs per node."""
    cpus: int = 1
    """CPU cores per process."""
    mem_mb: int | None = None
    """Memory per node, 0 for all of it; the partition's default unless given."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Node features, such as h200."""
    max_requeues: int = 20
    """How often the command may be started again, for whatever reason, in one job or several."""
    signal_seconds: int = 120
    """How long before the time limit a job is told to save."""

    @property
    def ranks(self) -> int:
        """Processes of the whole job."""
        return self.nodes * self.tasks


@dataclass(frozen=True)
class Order:
    """A command with its resources."""

    words: tuple[str, ...]
    """The verb of the package and its arguments."""
    place: Path
    """The folder or file that the command writes: whoever claims it is alone there."""
    resources: Resources = Resources()
    cluster: Cluster = "slurm"
    save_minutes: float | None = None
    """How often the command saves its state while it runs, where it does."""
    python: str = sys.executable
    """The interpreter that runs the verb on the node."""

    @property
    def claims(self) -> Claims:
        """The claims of the place."""
        return Claims.beside(self.place)

    @property
    def name(self) -> str:
        """The job's name up to the claim's number; the same for every order of the same place."""
        place = hashlib.sha256(str(self.claims.folder).encode()).hexdigest()[:10]
        return f"dseq-{self.words[0]}-{place}"

    @property
    def command(self) -> str:
        """As a person would type it."""
        return shlex.join(["dseq-jepa", *self.words])

    def check(self) -> None:
        """Refuse what cannot work before anything is submitted.

        Raises:
            UserError: saying which option is wrong.

        """
        limit, saves = self.resources.minutes, self.save_minutes
        if self.resources.signal_seconds >= 60 * limit:
            raise UserError(
                f"--minutes {limit} is not longer than the {self.resources.signal_seconds} s of --signal-seconds that "
                "a job is given to save; raise the limit or shorten the warning"
            )
        if saves is not None and limit <= saves:
            other = " or lower recipes.*.save_every_minutes" if self.words[0] == "pretrain" else ""
            raise UserError(
                f"--minutes {limit}: the time limit is not longer than the {saves:g} minutes between saved states; a "
                f"job that is killed without warning would never get on. Raise the limit{other}."
            )
        if 0 < self.resources.gpus < self.resources.tasks:
            raise UserError(
                f"--gpus {self.resources.gpus}: {self.resources.tasks} processes of a node need one GPU each; ask for "
                "as many, or change compute.ranks"
            )
        if self.cluster != "slurm" and self.resources.nodes > 1:
            raise UserError(f"--cluster {self.cluster} is one machine; --nodes {self.resources.nodes} needs slurm")


@dataclass(frozen=True)
class Needs:
    """What a command needs because of its own settings."""

    ranks: int = 1
    gpus: bool = False
    """Whether each rank computes on a GPU."""
    cpus: int = 1
    """Cores of one rank: its threads and its loading processes."""
    save_minutes: float | None = None


def needs_of(verb: str, params: Mapping[str, Any]) -> Needs:
    """What a parsed command needs.

    Args:
        verb: of the package.
        params: its options by name, such as the resolved job as JSON under `settings`, or `config` and names.

    """
    if params.get("settings"):
        job = json.loads(params["settings"])
    elif params.get("config") and "seed" in params:
        from dseq_jepa.config import load

        experiment = load(params["config"]).model_dump(mode="json")
        architecture = params.get("architecture") or next(iter(experiment["architectures"]))
        recipe = experiment["architectures"].get(architecture, {}).get("recipe")
        job = experiment | {"recipe": experiment["recipes"].get(recipe)}
    else:
        return Needs()
    if "compute" not in job:
        return Needs()
    compute = job["compute"]
    return Needs(
        ranks=compute["ranks"],
        gpus=compute["device"] == "cuda",
        cpus=compute["threads"] + job["loading"]["workers"],
        save_minutes=_save_minutes(verb, job.get("recipe")),
    )


def _save_minutes(verb: str, recipe: Mapping[str, Any] | None) -> float | None:
    """How often a verb saves its state; None for one that does not."""
    if verb == "pretrain":
        return None if recipe is None else float(recipe["save_every_minutes"])
    if verb == "probe":
        return PROBE_SECONDS / 60
    return TUNING_SECONDS / 60 if verb in ("finetune", "segment", "detect") else None


def place_of(params: Mapping[str, Any], words: tuple[str, ...]) -> Path:
    """What a command writes: its --out, or else, inside its --results, something that only equal commands share."""
    if params.get("out") is not None:
        return Path(params["out"])
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:10]
    return Path(params.get("results") or ".") / f"{words[0]}-{digest}"


_OPTIONS = {
    "runtime": "minutes",
    "nodes": "nodes",
    "mem_mb": "mem_mb",
    "slurm_partition": "partition",
    "slurm_account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "max_requeues": "max_requeues",
    "signal_seconds": "signal_seconds",
}
"""Snakemake's resources, by the names that its Slurm plugin gave them, and the options that they become."""


def prefix(resources: Mapping[str, Any], python: str | None = None) -> str:
    """What stands before a workflow's command: `dseq-jepa launch ... --`; empty for the launcher "none".

    Args:
        resources: of the workflow's rule.
        python: the interpreter that runs the command, where it is not the one that launches it.

    """
    if resources.get("launcher", "none") == "none":
        return ""
    words = ["dseq-jepa", "launch", "--cluster", str(resources["launcher"])]
    for resource, option in _OPTIONS.items():
        value = resources.get(resource)
        if value not in (None, ""):
            words += [f"--{option.replace('_', '-')}", str(value)]
    if python is not None:
        words += ["--python", python]
    return shlex.join([*words, "--"])


def sbatch_parameters(order: Order, name: str) -> dict[str, Any]:
    """What submitit's AutoExecutor is told."""
    wanted = order.resources
    parameters: dict[str, Any] = {
        "name": name,
        "timeout_min": wanted.minutes,
        "nodes": wanted.nodes,
        "tasks_per_node": wanted.tasks,
        "gpus_per_node": wanted.gpus,
        "stderr_to_stdout": True,
    }
    if order.cluster == "local":
        return parameters
    parameters |= {
        "cpus_per_task": wanted.cpus,
        "slurm_signal_delay_s": wanted.signal_seconds,
        # one failed process ends the others; --requeue where the cluster's default is not to
        # since Slurm 22.05 srun does not know how many cores sbatch gave to a task
        "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={wanted.cpus}"],
        "slurm_additional_parameters": {"requeue": True},
    }
    if not wanted.gpus:
        del parameters["gpus_per_node"]
    if wanted.mem_mb is not None:
        parameters["slurm_mem"] = f"{wanted.mem_mb}MB"
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(wanted, key) is not None:
            parameters[f"slurm_{key}"] = getattr(wanted, key)
    return parameters


def described(resources: Resources) -> str:
    """The resources that differ from what a job gets unasked, for messages."""
    usual = Resources()
    asked = asdict(resources)
    changed = [f.name for f in fields(resources) if asked[f.name] != getattr(usual, f.name)]
    return ", ".join(f"{name.replace('_', ' ')} {asked[name]}" for name in changed) or "default resources"
