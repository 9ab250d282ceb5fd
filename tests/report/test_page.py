"""The report says what was measured, leads from cells to runs, and is one file."""

import csv
import html
import json
import re
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.journal import Journal
from dseq_jepa.selection import MEASURES
from tests.report.conftest import write

PRETRAIN = "pretrain/dseq-jepa/vit-micro/seed0"


def cells(results: Path) -> list[dict[str, str]]:
    with (results / "tables" / "table1.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_value_of_the_tables_is_there_beside_the_papers(results: Path, page: str) -> None:
    for cell in cells(results):
        if cell["ours"]:
            link = f'<a href="#run-{cell["run"].replace("/", "-")}"'
            assert re.search(re.escape(link) + f"[^>]*>{float(cell['ours']):.1f}</a>", page)
        if cell["reported"]:
            assert f'data-value="{float(cell["reported"]):.1f}"' in page


def test_differences_stand_beside_their_intervals(results: Path, page: str) -> None:
    printed = [cell for cell in cells(results) if cell["ours_delta_low"]]
    assert printed
    for cell in printed:
        low, high = (f"{float(cell[end]):+.1f}".replace("-", "−") for end in ("ours_delta_low", "ours_delta_high"))
        assert f'</small><small class="interval">[{low}, {high}]</small>' in page
    assert "paired bootstrap" in page


def test_every_link_inside_the_page_leads_somewhere(page: str) -> None:
    targets = re.findall(r'href="#([^"]+)"', page)
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(targets) > 12
    assert set(targets) <= set(ids)
    assert len(set(ids)) == len(ids)


def test_nothing_comes_from_a_network(page: str) -> None:
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)|url\(([^)]+)\)|https?://[^\s"'<]+""", page)
    assert {a for pair in addresses for a in pair if a and not a.startswith(("#", "data:"))} == set()
    assert not re.findall(r"https?://", page)


def test_the_same_artefacts_give_the_same_bytes(results: Path, page: str) -> None:
    assert write(results) == page


def test_a_checkpoint_without_measures_has_dashes(results: Path) -> None:
    path = results / "score" / PRETRAIN.removeprefix("pretrain/") / "scores.json"
    scores = json.loads(path.read_text())
    scores["checkpoints"][0] |= dict.fromkeys(MEASURES)
    path.write_text(json.dumps(scores))
    assert write(results).count('<td class="value">-</td>') == len(MEASURES)


def test_a_reason_stands_for_every_missing_value(results: Path, page: str) -> None:
    reasons = {cell["reason"] for cell in cells(results) if not cell["ours"]}
    assert reasons
    missing = page.partition('id="missing"')[2]
    for reason in reasons:
        assert html.escape(reason) in missing


def test_runs_tell_their_curves_choice_and_provenance(results: Path, page: str) -> None:
    run = page.partition(f'id="run-{PRETRAIN.replace("/", "-")}"')[2].partition('class="job"')[0]
    made = json.loads((results / PRETRAIN / "provenance.json").read_text())
    assert {"loss", "learning rate", "loss of each step"} <= set(re.findall(r"<figcaption>([^<]+)", run))
    assert made["config_digest"] in run
    assert made["data"]["pretraining"] in run
    selection = json.loads((results / "export/dseq-jepa/vit-micro/seed0/selection.json").read_text())
    assert html.escape(selection["reason"]) in page


def test_data_cost_and_environment(results: Path, page: str) -> None:
    for path in (results / "fingerprints").glob("*.json"):
        assert f'<code title="{json.loads(path.read_text())["fingerprint"]}">' in page
    made = [json.loads(path.read_text()) for path in results.glob("**/seed0/provenance.json")]
    seconds = sum(entry["seconds"] for entry in made if entry["seconds"])
    assert f'<td class="value">{seconds / 3600:.3f}</td>' in page
    assert f"<dd>{made[0]['python']}</dd>" in page


def test_figures_are_embedded_with_their_captions(page: str) -> None:
    assert re.search(r'<img alt="Figure 2[^"]*" src="data:image/png;base64,[A-Za-z0-9+/=]+">', page)
    assert "<p><strong>Figure 2.</strong> Regions &amp; patches &lt;b&gt;.</p><p>Second paragraph.</p>" in page


def test_the_pictures_that_an_evaluation_draws_stand_beside_its_values(results: Path, page: str) -> None:
    assert "Truth and prediction" not in page
    place = "evaluate/small/i-jepa/vit-micro/seed0"
    (results / place / "examples.png").write_bytes((results / "figures" / "figure2.png").read_bytes())
    job = write(results).partition('id="run-evaluate-small-i-jepa')[2].partition('<div class="job"')[0]
    assert re.search(rf'<img alt="Truth and prediction of {place}" src="data:image/png;base64,[A-Za-z0-9+/=]+">', job)


def test_a_figure_without_caption_is_said(results: Path) -> None:
    (results / "figures" / "figure2.caption.md").unlink()
    with pytest.raises(UserError, match=r"figure2\.caption\.md: cannot be read: no such file or directory; draw it"):
        write(results)


def test_a_failure_is_shown_with_the_end_of_its_log(results: Path) -> None:
    with Journal(results / PRETRAIN / "journal.jsonl") as journal:
        journal.event("failed", text="step 3: <it> broke.")
    log = results / "logs" / f"{PRETRAIN}.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i}\n" for i in range(100)) + "error: step 3 & more\n")
    page = write(results)
    assert "failed: step 3: &lt;it&gt; broke." in page
    assert "error: step 3 &amp; more" in page
    assert "line 99" in page
    assert "line 9\n" not in page
    assert f"Failed: {PRETRAIN}." in page


def test_a_table_that_is_not_finished_is_an_error_or_is_named(results: Path) -> None:
    (results / "evaluate/small/i-jepa/vit-micro/seed0/metrics.json").unlink()
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read"):
        write(results)
    page = write(results, incomplete=True)
    assert "Table 1 is not finished: " in page
    assert "<h3>Table 3. " in page


def test_an_empty_folder_says_so(tmp_path: Path, results: Path) -> None:
    from dseq_jepa.report.collect import collect

    with pytest.raises(UserError, match="nothing to report before the workflow has run"):
        collect(tmp_path / "none")
