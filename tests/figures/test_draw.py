"""Every kind of figure from a tiny run: whole files, the same bytes every time, captions without markup.

pytest tests/figures/test_draw.py
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from docutils.core import publish_parts
from PIL import Image

from dseq_jepa.config import from_mapping, load, read_yaml
from dseq_jepa.errors import ConfigError
from dseq_jepa.figures.draw import write_figure
from dseq_jepa.figures.job import FigureJob
from tests.figures.runs import FIGURES, figure_job
from tests.workflow.project import ROOT, Project

Trained = tuple[Path, Path]
DEMO = ROOT / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def drawn(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, results = trained
    out = tmp_path_factory.mktemp("figures")
    for kind in FIGURES:
        write_figure(FigureJob.parse(figure_job(root, kind).to_json()), results, out)
    return out


@pytest.mark.parametrize("kind", FIGURES)
def test_pictures_are_whole_and_not_empty(drawn: Path, kind: str):
    pixels = np.asarray(Image.open(drawn / f"{kind}.png").convert("L"))
    assert min(pixels.shape) > 300
    assert len(np.unique(pixels)) > 20
    ink = pixels < 250
    assert ink.mean() > 0.01
    margin = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert margin.mean() < 0.05  # nothing is cut off
    pdf = (drawn / f"{kind}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert sorted(path.name for path in drawn.glob(f"{kind}.*")) == [f"{kind}.caption.md", f"{kind}.pdf", f"{kind}.png"]


@pytest.mark.parametrize("kind", FIGURES)
def test_captions_read_the_same_in_markdown_and_in_snakemakes_report(drawn: Path, kind: str):
    text = (drawn / f"{kind}.caption.md").read_text()
    assert not set("*`|<>#") & set(text)
    warnings = io.StringIO()
    html = publish_parts(text, writer="html", settings_overrides={"warning_stream": warnings})["body"]
    assert not warnings.getvalue()
    assert html.count("<p>") == 1
    assert "epoch" in text or "journals" in text
    assert "generated" in text  # a miniature says so


@pytest.mark.parametrize("kind", ["panels", "step-loss", "course"])
def test_the_same_inputs_give_the_same_bytes(trained: Trained, drawn: Path, tmp_path: Path, kind: str):
    root, results = trained
    for path in write_figure(figure_job(root, kind), results, tmp_path):
        assert path.read_bytes() == (drawn / path.name).read_bytes()


def test_what_no_picture_depends_on_redraws_nothing(trained: Trained):
    job = figure_job(trained[0], "panels")
    busy = job.model_copy(update={"loading": job.loading.model_copy(update={"workers": 7})})
    assert busy.digest == job.digest
    more = job.model_copy(update={"figure": job.figure.model_copy(update={"images": 5})})
    assert more.digest != job.digest


@pytest.mark.parametrize(
    ("figure", "problem"),
    [
        (
            {"kind": "panels", "method": "dseq-jepa", "beside": "i-jepa", "percent": 60},
            "percent: no checkpoint is kept",
        ),
        ({"kind": "panels", "method": "i-jepa", "beside": "i-jepa"}, "method: i-jepa finds no salient regions"),
        ({"kind": "panels", "method": "dseq-jepa", "beside": "ijepa"}, 'method: "ijepa" is not defined; did you mean'),
        (
            {"kind": "clusters", "method": "dseq-jepa", "clusters": 6},
            "clusters: input should be less than or equal to 5",
        ),
        ({"kind": "panel", "method": "dseq-jepa"}, "kind: no such kind 'panel'; did you mean \"panels\""),
        ({"kind": "course", "methods": ["dseq-jepa", "i-jepa"]}, "method: i-jepa finds no salient regions"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_starts(figure: dict[str, object], problem: str):
    mapping = read_yaml(DEMO)
    mapping["figures"]["mine"] = figure | {"architecture": "vit-mini"}
    with pytest.raises(ConfigError) as refused:
        from_mapping(mapping, "my.yaml")
    assert f"my.yaml: figures.mine.{problem}" in str(refused.value)


@pytest.mark.parametrize("config", ["demo", "paper"])
def test_both_configurations_have_the_papers_figures(config: str):
    figures = load(ROOT / "configs" / f"{config}.yaml").figures
    assert list(figures) == ["figure2", "figure4", "figure6", "figure7", "regions"]
    assert figures["figure4"].percent == 75
    assert [(figures[name].clusters, figures[name].split) for name in ("figure6", "figure7")] == [
        (4, "train"),
        (5, "val"),
    ]
    assert config == "demo" or figures["figure4"].images == 10_000


@pytest.mark.slow
def test_a_plan_of_figures_trains_what_they_show_and_evaluates_nothing(tmp_path: Path):
    text = DEMO.read_text().replace("results/demo", f"{tmp_path}/results/demo")
    project = Project.at(tmp_path, f"{text}\nresults: {json.dumps(str(tmp_path / 'results'))}\n")
    plan = project.plan("figures")
    assert plan.pop("figures") == 1
    assert plan == {"miniature": 1, "data_check": 1, "pretrain": 2, "draw": 5}
    assert project.plan("figure2").keys() == {"miniature", "data_check", "pretrain", "draw", "figure2"}
