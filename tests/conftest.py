"""One compute thread per test process: the tests' tensors are tiny, and more threads than cores cost tenfold.

`make test` runs a process per core, which take whole files; of Slurm there is one on a machine, so its tests stay in
one process, where they mostly wait.
"""

import os
import signal
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A shell makes its background commands ignore Ctrl-C, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
LONGEST = ("tests/slurm/", "tests/workflow/test_workflow.py", "tests/workflow/test_real_packs.py")


class OneSlurm(LoadFileScheduling):
    """Files as units of work, but all of tests/slurm as one."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneSlurm:
    return OneSlurm(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: begun last, they would keep one core busy and the other idle."""

    def rank(item: pytest.Item) -> int:
        return next((rank for rank, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with micro.yaml and results/micro, made once by the real verbs; tests that change it copy it."""
    from tests.measured import measure

    folder = tmp_path_factory.mktemp("micro")
    measure(folder)
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables, made once: the migrations take seconds."""
    from dseq_jepa.tracking import sync

    results = tmp_path_factory.mktemp("empty")
    sync(results, "other", uri=f"sqlite:///{results}/mlflow.db")
    return results / "mlflow.db"
