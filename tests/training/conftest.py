"""Pictures shared by the training tests."""

from pathlib import Path

import pytest

from tests.training.runs import write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))
