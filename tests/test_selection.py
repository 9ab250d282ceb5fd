import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dseq_jepa.data.catalog import load_split
from dseq_jepa.data.loaders import evaluation_batches
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.data.transforms import TestView, normalise
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.slices import balanced_slices
from dseq_jepa.jobs import ScoreJob
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.models.weights import export_encoder, read_card
from dseq_jepa.selection import score, select
from dseq_jepa.training.settings import SelectionSettings
from tests.evaluation.pictures import make_imagenet
from tests.models.checkpoints import CPU, MODEL, TINY, encoder, write_checkpoint
from tests.reference import knn as reference

PROTOCOL = SelectionSettings(neighbours=5, bank_fraction=0.5, query_fraction=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetSettings:
    return make_imagenet(tmp_path_factory.mktemp("data") / "imagenet", train=60, val=4)


def score_job(data: DatasetSettings, protocol: SelectionSettings = PROTOCOL) -> ScoreJob:
    return ScoreJob(
        model=MODEL, compute=CPU, loading=LoadingSettings(workers=0), architecture=TINY, class_token=True, data=data,
        selection=protocol,
    )  # fmt: skip


def collapsed() -> VisionTransformer:
    model = encoder(class_token=True)
    with torch.no_grad():
        model.norm.weight.fill_(0.0)
        model.norm.bias.fill_(0.5)
    return model


def pooled(model: VisionTransformer, data: DatasetSettings, ids: np.ndarray) -> np.ndarray:
    """Patch means of the last block, the plain way."""
    split = load_split(data, "train")
    batches = evaluation_batches(
        split, ids, view=TestView(32, 32), batch_size=7, rank=0, ranks=1, loading=LoadingSettings(workers=0)
    )
    with torch.no_grad():
        parts = [model.read(normalise(batch.images_BCHW), [4])[0].patches_BTD.mean(1) for batch in batches]
    return torch.cat(parts).double().numpy()


def test_scores_are_those_of_the_slow_reference(data: DatasetSettings, tmp_path: Path) -> None:
    model = encoder(class_token=True)
    path = write_checkpoint(tmp_path / "run", model, 50)
    scores = json.loads(score(score_job(data), [path], tmp_path / "score").read_text())
    labels = load_split(data, "train").labels
    queries, bank = balanced_slices(labels, [12, 30], 0)
    bank_ND, queries_QD = pooled(model, data, bank), pooled(model, data, queries)
    (row,) = scores["checkpoints"]
    expected = reference.knn_top1(bank_ND, labels[bank].tolist(), queries_QD, labels[queries].tolist(), 5, 0.07)
    assert row["knn_top1"] == pytest.approx(expected)
    assert row["rankme"] == pytest.approx(reference.rankme(bank_ND), rel=1e-3)
    centred_ND = bank_ND - bank_ND.mean(axis=0)
    assert row["centred_rank"] == pytest.approx(reference.rankme(centred_ND), rel=1e-3)
    assert row["feature_std"] == pytest.approx(bank_ND.std(axis=0, ddof=1).mean(), rel=1e-4)
    assert 1 <= row["lidar"] <= 12
    assert (row["percent"], row["epoch"], scores["bank"], scores["queries"]) == (50, 2.0, 30, 12)
    assert scores["model"]["method"] == "m"
    assert (tmp_path / "score" / "provenance.json").exists()


def test_a_collapsed_checkpoint_is_seen_and_the_other_is_exported(data: DatasetSettings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    paths = [write_checkpoint(run, collapsed(), 100), write_checkpoint(run, encoder(class_token=True), 50)]
    scores = score(score_job(data), paths, tmp_path / "score")
    rows = json.loads(scores.read_text())["checkpoints"]
    assert [row["percent"] for row in rows] == [50, 100]
    assert rows[1]["rankme"] == pytest.approx(1, abs=1e-3)
    assert rows[1]["centred_rank"] == pytest.approx(1, abs=1e-3)
    selection = select(scores, tmp_path / "elsewhere" / "export")
    content = json.loads(selection.read_text())
    assert content["chosen"]["percent"] == 50
    assert "collapsed and refused: 100%" in content["reason"]
    card = read_card(export_encoder(selection, tmp_path / "elsewhere" / "export"))
    assert (card.epoch, card.score, card.checkpoint) == (2.0, rows[0]["knn_top1"], "checkpoint-050.safetensors")


def test_a_checkpoint_that_is_no_number_is_refused_and_the_other_is_chosen(
    data: DatasetSettings, tmp_path: Path
) -> None:
    broken = encoder(class_token=True)
    with torch.no_grad():
        broken.norm.bias[0] = torch.nan
    paths = [write_checkpoint(tmp_path, model, at) for model, at in ((broken, 100), (encoder(class_token=True), 50))]
    scores = score(score_job(data), paths, tmp_path / "score")
    assert "NaN" not in scores.read_text(), "no JSON"
    content = json.loads(select(scores, tmp_path / "export").read_text())
    assert content["chosen"]["percent"] == 50
    assert content["candidates"][1]["collapsed"] == "features are NaN or infinite"
    with pytest.raises(UserError, match=r"every checkpoint has collapsed \(100%: features are NaN or infinite\)"):
        select(score(score_job(data), paths[:1], tmp_path / "score"), tmp_path / "export")


def test_validation_images_are_never_read(data: DatasetSettings, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run", encoder(class_token=True))
    (data.root / "val").rename(data.root / "hidden")
    try:
        score(score_job(data), [path], tmp_path / "score")
    finally:
        (data.root / "hidden").rename(data.root / "val")


def test_a_training_set_too_small_for_the_slices_is_named(data: DatasetSettings, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run", encoder(class_token=True))
    with pytest.raises(UserError, match="a bank of 6; selection needs"):
        score(score_job(data, SelectionSettings(neighbours=20)), [path], tmp_path / "score")


def test_a_checkpoint_of_another_architecture_is_named(data: DatasetSettings, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run", encoder(class_token=False))
    with pytest.raises(UserError, match=r"checkpoint-050.* cls_token \(1, 1, 24\) is missing"):
        score(score_job(data), [path], tmp_path / "score")


@pytest.mark.parametrize("size", [{"heads": 2}, {"image_size": 48}, {"depth": 1, "saliency_block": 1}])
def test_sizes_that_no_shape_shows_are_compared_too(
    size: dict[str, int], data: DatasetSettings, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "run", encoder(class_token=True))
    expected = TINY.model_copy(update={**size, "label": "ViT-other"})
    job = score_job(data).model_copy(update={"architecture": expected})
    name = next(iter(size))
    message = (
        f"checkpoint-050.safetensors: is a checkpoint of {TINY.label} and not of ViT-other "
        rf"\({name} {getattr(TINY, name)}, not {size[name]}\). Name the architecture"
    )
    with pytest.raises(UserError, match=message):
        score(job, [path], tmp_path / "score")


def rows(**knn_of_percent: float) -> list[dict[str, Any]]:
    return [
        {"percent": int(percent[1:]), "epoch": 1.0, "file": f"../run/{percent}", "knn_top1": knn, "rankme": 1.2,
         "centred_rank": 9.0,
         "lidar": 8.0, "feature_std": 0.3}
        for percent, knn in knn_of_percent.items()
    ]  # fmt: skip


def choose(checkpoints: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    (folder / "score").mkdir()
    (folder / "score" / "scores.json").write_text(json.dumps({"schema": 1, "checkpoints": checkpoints}))
    content: dict[str, Any] = json.loads(select(folder / "score" / "scores.json", folder / "export").read_text())
    return content


def test_the_highest_score_is_chosen_and_the_reason_says_so(tmp_path: Path) -> None:
    selection = choose(rows(p25=40.0, p50=55.5, p75=50.0), tmp_path)
    assert selection["chosen"]["percent"] == 50
    assert "checkpoint at 50% has the highest kNN accuracy" in selection["reason"]
    assert "55.50% (others: 40.00% at 25%, 50.00% at 75%)" in selection["reason"]
    assert [row["percent"] for row in selection["candidates"]] == [25, 50, 75]


def test_of_equal_scores_the_later_checkpoint_is_chosen(tmp_path: Path) -> None:
    selection = choose(rows(p25=55.5, p50=40.0, p75=55.5), tmp_path)
    assert selection["chosen"]["percent"] == 75
    assert "of equal ones the latest was taken" in selection["reason"]


@pytest.mark.parametrize("sign", [{"centred_rank": 1.5}, {"feature_std": 1e-6}])
def test_a_collapsed_checkpoint_is_not_chosen_however_high_its_score(tmp_path: Path, sign: dict[str, float]) -> None:
    good, bad = rows(p25=10.0, p50=90.0)
    selection = choose([good, bad | sign], tmp_path)
    assert selection["chosen"]["percent"] == 25
    assert selection["candidates"][1]["collapsed"]


def test_nothing_is_chosen_when_all_have_collapsed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every checkpoint has collapsed"):
        choose([row | {"centred_rank": 1.0} for row in rows(p25=10.0, p50=90.0)], tmp_path)
    assert not (tmp_path / "export").exists()
