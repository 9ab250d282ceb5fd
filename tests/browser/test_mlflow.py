"""MLflow's own pages show the mirrored runs: a model with its children, and curves that are really drawn."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dseq_jepa.tracking import sync

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

PRETRAIN = "dseq-jepa / ViT-micro/8 / seed 0"
PATIENCE_MS = 90_000


@pytest.fixture(scope="module")
def dashboard(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the dashboard of the micro results."""
    results = tmp_path_factory.mktemp("dashboard") / "micro"
    shutil.copytree(micro / "results" / "micro", results)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    sync(results, "micro")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "dseq_jepa", "dashboard", "--results", str(results), "--port", port]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert "until Ctrl-C" in process.stdout.readline()
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


def test_a_model_s_children_and_curves_are_shown(dashboard: str, page: "Page", screenshots: Path) -> None:
    page.goto(f"{dashboard}/#/experiments/1/runs")
    grid = page.locator(".ag-row")
    parent = grid.filter(has=page.get_by_text(PRETRAIN, exact=True)).first
    parent.wait_for()
    run = str(parent.get_attribute("row-id"))
    assert grid.get_by_text(f"small: {PRETRAIN}").count() == 0
    parent.locator("button").first.click()  # the small plus
    for child in ("select", "small", "large"):
        grid.get_by_text(f"{child}: {PRETRAIN}", exact=True).first.wait_for()
    page.screenshot(path=screenshots / "mlflow-runs.png")

    page.goto(f"{dashboard}/#/experiments/1/runs/{run}/model-metrics")
    drawn = """() => {
        const charts = document.querySelectorAll(".js-plotly-plot");
        const lines = [...document.querySelectorAll(".scatterlayer path.js-line")];
        return charts.length >= 6 && lines.some((line) => line.getAttribute("d").split("L").length > 4);
    }"""  # straight lines are drawn from end to end; 12 steps that are logged every 2 are no straight line
    page.wait_for_function(drawn)
    page.screenshot(path=screenshots / "mlflow-charts.png")

    page.goto(f"{dashboard}/#/experiments/1/runs/{run}")
    page.get_by_text("Measured and chosen from it").wait_for()
    link = page.locator("a[href*='/experiments/1/runs/']", has_text="small: ").first
    assert link.get_attribute("href")
    page.screenshot(path=screenshots / "mlflow-run.png")
