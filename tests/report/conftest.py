"""A copy of the measured micro results, and the report about them."""

import shutil
from pathlib import Path

import pytest

from dseq_jepa.config import load
from dseq_jepa.report.job import report_job
from dseq_jepa.report.page import write_report
from tests.measured import REPORTED


@pytest.fixture
def results(micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """results/micro, with a figure that is one grey picture; the current folder holds it and micro.yaml."""
    from PIL import Image

    shutil.copytree(micro, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    figures = Path("results/micro/figures")
    figures.mkdir()
    Image.new("RGB", (40, 20), "grey").save(figures / "figure2.png")
    (figures / "figure2.caption.md").write_text("**Figure 2.** Regions & patches <b>.\n\nSecond paragraph.\n")
    return Path("results/micro")


@pytest.fixture
def page(results: Path) -> str:
    """The report as text."""
    return write(results)


def write(results: Path, incomplete: bool = False) -> str:
    """Write the report and return it."""
    figures = sorted((results / "figures").glob("*.png"))
    job = report_job(load("micro.yaml"))
    return write_report(job, results, REPORTED, figures, results / "report.html", incomplete).read_text()
