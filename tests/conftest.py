"""One compute thread per test process: the tests' tensors are tiny, and more threads than cores cost tenfold."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A shell makes its background commands ignore Ctrl-C, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
