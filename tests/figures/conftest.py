"""One tiny run for all figures."""

from pathlib import Path

import pytest

from tests.figures.runs import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder of pictures and results/test."""
    return train(tmp_path_factory.mktemp("trained"))
