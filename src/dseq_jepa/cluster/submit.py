"""Hand an order to submitit: to sbatch, to a process of this machine, or to this process.

job = submit(order, task_of(order, token, 0), folder, "dseq-pretrain-1f03-7", folder / "job")      # the job's id
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dseq_jepa.cluster.gpus import visible_gpus
from dseq_jepa.cluster.order import Order, described, sbatch_parameters
from dseq_jepa.cluster.scheduler import NoAnswerError, Slurm, started, unanswered
from dseq_jepa.cluster.task import Task
from dseq_jepa.errors import UserError
from dseq_jepa.files import write_atomically


def task_of(order: Order, token: int, before: int) -> Task:
    """What runs on the nodes, under the claim that an order is submitted with, after so many starts of other jobs."""
    wanted = order.resources
    local = order.cluster != "slurm"
    return Task(
        order.words,
        order.claims.folder,
        token,
        wanted.max_requeues,
        before,
        order.python,
        gpus=wanted.gpus if local else 0,
        visible=tuple(visible_gpus()) if local else (),
    )


def submit(order: Order, task: Task, folder: Path, name: str, noted: Path) -> str:
    """Start a task and write its job's id into `noted`.

    Args:
        order: what is run.
        task: the same, as it is sent to the nodes.
        folder: for submitit's files and the logs.
        name: of the job.
        noted: file for the id.

    Raises:
        NoAnswerError: when the controller does not answer; the job may be in the queue all the same.
        UserError: when sbatch refuses the job.

    """
    if order.cluster == "debug":
        return _here(task, folder, noted)
    with _undisturbed():
        job = _submitted(order, task, folder, name)
        write_atomically(noted, job)
    return job


def adopt(folder: Path, job: str) -> None:
    """Give a job its task where whoever submitted it came no further: submitit does that after sbatch, by the job's id.

    A link, for the one who submitted may be alive and about to do the same.
    """
    for task in folder.glob("*.pkl"):
        if "_" not in task.name:
            with suppress(FileExistsError, FileNotFoundError):
                os.link(task, folder / f"{job}_submitted.pkl")


def _here(task: Task, folder: Path, noted: Path) -> str:
    """Run the task in this process; its output goes to the terminal."""
    import submitit

    write_atomically(noted, f"{socket.gethostname()}:{os.getpid()}:{started(os.getpid())}")
    executor = submitit.AutoExecutor(folder, cluster="debug")
    with suppress(SystemExit):  # the status is in the record
        executor.submit(task).result()
    return f"{socket.gethostname()}:{os.getpid()}:over"


def _submitted(order: Order, task: Task, folder: Path, name: str) -> str:
    import submitit

    try:
        executor = submitit.AutoExecutor(folder, cluster=order.cluster)
        executor.update_parameters(**sbatch_parameters(order, name))
        job = executor.submit(task)
    except submitit.core.utils.FailedJobError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["sbatch failed without a word"]
        if unanswered(lines[-1]):
            raise NoAnswerError(lines[-1]) from None
        raise UserError(_refused(order, lines)) from None
    if order.cluster == "local":
        return f"{socket.gethostname()}:{job.job_id}:{started(int(job.job_id))}"
    return str(job.job_id)


def _refused(order: Order, said: list[str]) -> str:
    """Why sbatch refused, and what there is."""
    reason = next((line for line in said if "error" in line.lower()), said[-1])
    return (
        f"sbatch refused the job ({described(order.resources)}): {reason}\nThis cluster has (partition, time limit, "
        f"nodes, GPUs per node):\n{Slurm().offer()}\nNothing was started."
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and the end of the terminal wait for the end of this block; processes that it starts ignore them.

    The mask is this thread's, which its processes inherit; a signal that another thread is given is noted.
    """
    numbers, came = (signal.SIGINT, signal.SIGHUP), list[int]()
    handlers = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # what came meanwhile is noted now
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)
