"""One Slurm for all tests of this folder, unless one runs already; the reason is printed where there can be none."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dseq_jepa.training.loop import pretrain
from tests.slurm import cluster
from tests.training.runs import job, write_pictures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = cluster.unavailable()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("timeout") is None:  # a marker added here would win over a module's
                item.add_marker(pytest.mark.timeout(400))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a Slurm without accounting: $DSEQ_SLURM_STATE, which is left running, or a new one."""
    given = os.environ.get("DSEQ_SLURM_STATE")
    folder = Path(given) if given else tmp_path_factory.mktemp("slurm")
    cluster.start(folder, "--no-accounting")
    yield folder
    if not given:
        cluster.stop(folder)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def settings(pictures: Path):
    """A run of some seconds that saves after every step."""
    return job(pictures, epochs=20, save_every_minutes=1e-9)


@pytest.fixture(scope="session")
def undisturbed(settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that every disturbed one must equal."""
    out = tmp_path_factory.mktemp("undisturbed")
    pretrain(settings, out)
    return out
