"""Engine detectron2, where it is installed: the same backbone, and whole jobs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2.modeling.backbone.vit", reason="detectron2 with its ViT is not installed")

from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.utils.env import seed_all_rng

from dseq_jepa.data.coco import read_coco
from dseq_jepa.data.loaders import EpochOrder
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.detection.average_precision import average_precision, read_predictions
from dseq_jepa.evaluation.detection.backbone import DetectionViT
from dseq_jepa.evaluation.detection.detectron2_config import load_backbone, model_config
from dseq_jepa.evaluation.detection.detectron2_engine import Detectron2Task, dataset_dicts
from dseq_jepa.evaluation.detection.heads import RegionHeads, RegionProposals, strides_of
from dseq_jepa.evaluation.detection.job import detect
from dseq_jepa.evaluation.tuning import Tuning
from dseq_jepa.jobs import DetectJob
from dseq_jepa.models.settings import ArchitectureSettings, PredictorSettings
from dseq_jepa.models.weights import load_encoder, read_card
from dseq_jepa.training.distributed import World
from tests.evaluation.pictures import export
from tests.evaluation.shapes import crowd, detection, job, make_shapes
from tests.evaluation.tuned import killed_after, logged, same_weights, start, weights_noted
from tests.models.checkpoints import encoder

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
VIT_16 = ArchitectureSettings(
    label="ViT-test/16", image_size=64, patch_size=16, width=24, depth=4, heads=3, saliency_block=3,
    predictor=PredictorSettings(width=12, depth=1), recipe="r",
)  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DatasetSettings:
    return make_shapes(tmp_path_factory.mktemp("data") / "coco")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(encoder(class_token=True), tmp_path_factory.mktemp("encoder"))


def settings(**changes: Any) -> Any:
    detector = {"score_threshold": 0.0, "detections_per_image": 9} | changes.pop("detector", {})
    return detection(engine="detectron2", detector=detector, **changes)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("class_token", [False, True])
def test_both_backbones_give_the_same_maps_from_the_same_file(
    tmp_path: Path, window: int | None, class_token: bool
) -> None:
    """Global or windowed attention, no class token, no relative position, no final norm; on another grid."""
    path = export(encoder(class_token), tmp_path)
    chosen = settings(image_size=80, detector={"window": window})
    theirs = instantiate(model_config(read_card(path), chosen, classes=3).backbone.net).eval()
    load_backbone(theirs, load_encoder(path))
    ours = DetectionViT(load_encoder(path), window).eval()
    images = torch.rand(2, 3, 80, 80)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images)["last_feat"], atol=1e-5)


def test_relative_positions_start_from_zero_and_nothing_else_is_left_out(weights: Path) -> None:
    with_relative = settings(detector={"window": 4, "relative_position": True})
    net = instantiate(model_config(read_card(weights), with_relative, classes=3).backbone.net).eval()
    load_backbone(net, load_encoder(weights))
    assert all(float(value.abs().max()) == 0 for name, value in net.state_dict().items() if "rel_pos" in name)
    ours = DetectionViT(load_encoder(weights), 4).eval()
    with torch.no_grad():
        assert torch.allclose(ours(torch.ones(1, 3, 64, 64)), net(torch.ones(1, 3, 64, 64))["last_feat"], atol=1e-5)
    bare = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="do not fit"):
        load_backbone(bare, load_encoder(weights))


def test_both_engines_have_the_same_numbers_at_patch_16(tmp_path: Path) -> None:
    card = read_card(export(encoder(False, VIT_16), tmp_path))
    chosen = settings(image_size=128)
    theirs = instantiate(model_config(card, chosen, classes=3))
    rpn, regions = theirs.proposal_generator, theirs.roi_heads
    ours = RegionProposals(chosen.detector, strides_of(16))
    heads = RegionHeads(chosen.detector, strides_of(16), 16, classes=3)
    assert [a.shape[0] for a in rpn.anchor_generator.cell_anchors] == [3] * 5
    for own, their in zip(ours.anchor_generator.cell_anchors, rpn.anchor_generator.cell_anchors, strict=True):
        assert torch.allclose(own, their)
    assert ours._pre_nms_top_n == {"training": rpn.pre_nms_topk[True], "testing": rpn.pre_nms_topk[False]}
    assert ours._post_nms_top_n == {"training": rpn.post_nms_topk[True], "testing": rpn.post_nms_topk[False]}
    assert (ours.nms_thresh, ours.fg_bg_sampler.batch_size_per_image) == (rpn.nms_thresh, rpn.batch_size_per_image)
    assert (rpn.smooth_l1_beta, regions.box_predictor.smooth_l1_beta) == (0.0, 0.0)
    assert heads.fg_bg_sampler.batch_size_per_image == regions.batch_size_per_image
    boxes = torch.tensor([[3.0, 5.0, 41.0, 77.0], [60.0, 60.0, 64.0, 66.0], [0.0, 0.0, 128.0, 128.0]])
    maps = [torch.rand(1, 16, 128 // stride, 128 // stride) for stride in (4, 8, 16, 32)]
    from detectron2.structures import Boxes

    for pool, their in ((heads.box_roi_pool, regions.box_pooler), (heads.mask_roi_pool, regions.mask_pooler)):
        features = {str(level): values for level, values in enumerate(maps)}
        assert torch.allclose(pool(features, [boxes]), their(maps, [Boxes(boxes)]), atol=1e-5)
    count = sum(p.numel() for p in heads.parameters()) + sum(p.numel() for p in ours.parameters())
    # Theirs predicts no box for the background.
    assert count == sum(p.numel() for part in (rpn, regions) for p in part.parameters()) + 4 * (32 + 1)


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())["evaluations"]["coco"]
    assert found.pop("seconds") > 0
    return found


def test_a_whole_job_leaves_the_same_files_and_both_evaluators_agree(
    shapes: DatasetSettings, weights: Path, tmp_path: Path
) -> None:
    detect(job(shapes, settings(detector={"window": 4, "relative_position": True})), weights, tmp_path)
    found = metrics(tmp_path)
    assert (found["metric"], found["n"], found["steps"]) == ("box_ap", 4, 6)
    predictions = read_predictions(tmp_path / "predictions.json.gz")
    assert {one["category_id"] for one in predictions} <= {3, 7, 90}
    values, _ = average_precision(shapes.root / "annotations" / "instances_val2017.json", predictions)
    assert found["values"]["box_ap"] == values["box_ap"]
    for kind in ("box", "mask"):
        assert found["values"][f"detectron2_{kind}_ap"] == pytest.approx(values[f"{kind}_ap"], abs=1e-9)
    for file in ("records.csv.gz", "examples.png", "provenance.json"):
        assert (tmp_path / file).exists()


def test_a_stopped_job_goes_on_to_the_same_bits(
    shapes: DatasetSettings, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(shapes, settings())
    detect(work, weights, tmp_path / "whole")
    save = Tuning._save

    def save_and_stop(self: Tuning) -> None:
        save(self)
        if self.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dseq_jepa.evaluation.tuning.SAVE_SECONDS", -1.0)
        patched.setattr(Tuning, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            detect(work, weights, tmp_path / "parts")
    seed_all_rng(99)
    detect(work, weights, tmp_path / "parts")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    predictions = [read_predictions(tmp_path / out / "predictions.json.gz") for out in ("whole", "parts")]
    assert predictions[0] == predictions[1]
    assert len(predictions[0]) > 0


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_bits(shapes: DatasetSettings, weights: Path, tmp_path: Path) -> None:
    work, parts = job(shapes, settings(epochs=20)), tmp_path / "parts"
    killed_after(start("detect", work, weights, parts), parts, 18)
    assert not (parts / "metrics.json").exists()
    with weights_noted() as noted:
        detect(work, weights, parts)
        detect(work, weights, tmp_path / "whole")
    assert '"name":"resumed"' in (parts / "journal.jsonl").read_text()
    same_weights(*noted)
    assert metrics(parts) == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_train_and_judge_together(shapes: DatasetSettings, weights: Path, tmp_path: Path) -> None:
    """Ranks sample their regions by draws of their own, so that losses are near those of one, not equal."""
    work, losses = job(shapes, settings()), []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        process = start("detect", work, weights, out, ranks=ranks, save_seconds=1000)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        found = metrics(out)
        assert (found["n"], found["steps"]) == (4, 6)
        predictions = read_predictions(out / "predictions.json.gz")
        values, _ = average_precision(shapes.root / "annotations" / "instances_val2017.json", predictions)
        assert found["values"]["detectron2_box_ap"] == pytest.approx(values["box_ap"], abs=1e-9)
        assert len({one["image_id"] for one in predictions}) == 4, "every rank's pictures are judged"
        losses.append([values["coco/loss"] for _, values in logged(out) if "coco/loss" in values])
    assert losses[1] == pytest.approx(losses[0], rel=0.3)


def test_batches_are_those_of_the_other_engine(shapes: DatasetSettings, weights: Path) -> None:
    work: DetectJob = job(shapes, settings())
    task = Detectron2Task(work, weights, ALONE)
    order, part = EpochOrder(task.train.trainable, 0), read_coco(shapes.root, "train")
    seen = [[one["image_id"] for one in batch] for batch in task.batches(0)]
    expected = [part.images[index].id for epoch in (0, 1) for index in order(epoch)[:6]]
    assert [identity for batch in seen for identity in batch] == expected
    assert [[one["image_id"] for one in batch] for batch in task.batches(4)] == seen[4:]


def test_crowds_are_no_training_objects(shapes: DatasetSettings) -> None:
    (record,) = dataset_dicts(read_coco(shapes.root, "train"), [2])
    assert [one["iscrowd"] for one in record["annotations"]] == [0, 0, 1]
    assert [one["category_id"] for one in record["annotations"]][:2] == [2, 0]
    mapped = DatasetMapper(is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True)(record)
    assert len(mapped["instances"]) == 2


def test_what_detectron2_cannot_do_is_said_before_training(
    shapes: DatasetSettings, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="mixed precision needs a GPU"):
        detect(job(shapes, settings(precision="bf16")), weights, tmp_path)
    skipping = job(shapes, settings()).model_copy(update={"loading": LoadingSettings(workers=0, on_bad_image="skip")})
    with pytest.raises(UserError, match="cannot skip unreadable pictures"):
        detect(skipping, weights, tmp_path)
    data = make_shapes(tmp_path / "coco")
    path = data.root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"segmentation": crowd(1, 1, (2, 2, 5, 5), 48, 64)["segmentation"]}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation 1000 has run lengths and is no crowd"):
        detect(job(data, settings()), weights, tmp_path / "out")
