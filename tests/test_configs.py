"""The two configurations say what they should: the paper's numbers, a demo that fits its grid, generated pages in step.

pytest tests/test_configs.py
"""

import json
from pathlib import Path

import jsonschema
import pytest

from dseq_jepa.config import Experiment, load, read_yaml
from dseq_jepa.data.settings import DatasetSettings
from dseq_jepa.evaluation.settings import DetectionSettings, DetectorSettings
from dseq_jepa.jobs import evaluate_job, pretrain_job, score_job
from dseq_jepa.schema import REFERENCE, SCHEMA, reference_text, schema_text
from dseq_jepa.tables.reported import read_reported

ROOT = Path(__file__).parents[1]
FILES = ["demo", "paper"]
REMEDY = "stale: run `python -m dseq_jepa.schema` from the repository's root"


@pytest.fixture(params=FILES)
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return load(ROOT / "configs" / f"{request.param}.yaml")


@pytest.fixture
def paper() -> Experiment:
    return load(ROOT / "configs" / "paper.yaml")


def test_the_schema_is_in_step_with_the_settings():
    assert (ROOT / SCHEMA).read_text() == schema_text(), REMEDY


def test_the_reference_is_in_step_with_the_settings():
    assert (ROOT / REFERENCE).read_text() == reference_text(), REMEDY


@pytest.mark.parametrize("file", FILES)
def test_the_schema_takes_the_files_and_refuses_a_misspelt_key(file: str):
    mapping = read_yaml(ROOT / "configs" / f"{file}.yaml")
    schema = json.loads((ROOT / SCHEMA).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(mapping, schema, jsonschema.Draft202012Validator)
    mapping["evaluations"]["cub-linear"]["epoch"] = 3
    with pytest.raises(jsonschema.ValidationError, match="epoch"):
        jsonschema.validate(mapping, schema, jsonschema.Draft202012Validator)


def test_every_key_has_a_meaning():
    schema = Experiment.model_json_schema()
    nodes = {"Experiment": schema, **schema["$defs"]}
    fields = {f"{name}.{key}": field for name, node in nodes.items() for key, field in node["properties"].items()}
    assert [key for key, field in fields.items() if "description" not in field] == []


def test_every_job_of_every_row_resolves(experiment: Experiment):
    rows = [row for table in experiment.tables.values() for row in table.rows if row.method and row.architecture]
    assert len(rows) >= 8
    for row in rows:
        names = (str(row.method), str(row.architecture), experiment.seeds[0])
        pretrain_job(experiment, *names)
        score_job(experiment, *names)
        for group in experiment.groups:
            evaluate_job(experiment, group, *names)


def test_every_row_and_metric_is_in_the_reported_values(experiment: Experiment):
    for table in experiment.tables.values():
        reported = read_reported(ROOT / "configs" / "reported_values.csv", table.number)
        for column in table.columns:
            reported.check_metric(column.metric)
        shown = {(row.reported, row.reported_architecture) for row in table.rows if row.reported}
        assert shown == set(reported.rows), "a row of the paper is not in the table, or the other way round"


def test_what_grad_cam_costs_is_reported_beside_the_method_that_it_is_compared_with(experiment: Experiment):
    measured = {row.method for row in experiment.tables["table8"].rows}
    assert {row.method for row in experiment.tables["table7"].rows} <= measured


def test_the_four_rows_differ_only_where_the_paper_says(experiment: Experiment):
    for plain, contrastive in (("i-jepa", "c-jepa"), ("dseq-jepa", "dseq-c-jepa")):
        without = experiment.methods[plain].model_dump(exclude={"label", "contrastive"})
        assert experiment.methods[contrastive].model_dump(exclude={"label", "contrastive"}) == without
        assert experiment.methods[plain].contrastive is None
        assert experiment.methods[contrastive].contrastive is not None
    assert experiment.methods["i-jepa"].blocks == experiment.methods["dseq-jepa"].blocks


def test_the_paper_has_official_counts_and_the_schedule_of_its_appendix(paper: Experiment):
    def counts(data: DatasetSettings) -> tuple[int | None, int | None, int | None]:
        return data.train_images, data.val_images, data.classes

    assert {name: counts(data) for name, data in paper.data.items()} == {
        "imagenet": (1_281_167, 50_000, 1000),
        "inat21": (2_686_843, 100_000, 10_000),
        "cub": (5994, 5794, 200),
        "cars": (8144, 8041, 196),
        "clevr": (70_000, 15_000, None),
        "ade20k": (20_210, 2_000, 150),
        "coco": (118_287, 5_000, 80),
    }
    base, large, huge = (paper.recipes[f"pretrain-{size}"] for size in "blh")
    assert (base.epochs, large.epochs, huge.epochs) == (600, 600, 300)
    assert {recipe.batch_size for recipe in (base, large, huge)} == {2048}
    assert {recipe.warmup_epochs for recipe in (base, large, huge)} == {15}
    assert [round(base.epochs * percent / 100) for percent in paper.selection.keep_percent] == [150, 300, 450, 600]
    assert (huge.sharding, huge.activation_checkpointing) == ("fsdp", True)
    probe = paper.evaluations["imagenet-linear"]
    assert (probe.features[0], probe.epochs, probe.milestones) == ("last4", [28], (8, 16, 24))
    assert [probe.resize_for(size) for size in (224, 448)] == [256, 512]
    for name in ("cub-linear", "cars-linear"):
        small = paper.evaluations[name]
        assert min(len(small.epochs), len(small.learning_rates)) > 1
        assert min(small.epochs) > 2 * probe.epochs[0]


def test_the_paper_fine_tunes_by_mae_and_segments_by_mmsegmentation(paper: Experiment):
    settings = paper.evaluations["imagenet-finetune"]
    base, large, huge = (settings.on(name) for name in ("vit-b16", "vit-l16", "vit-h16-448"))
    assert (base.epochs, base.warmup_epochs, base.batch_size, base.learning_rate) == (50, 5, 512, 1e-4)
    assert [one.layer_decay for one in (base, large, huge)] == [0.65, 0.75, 0.75]
    assert [one.drop_path for one in (base, large, huge)] == [0.1, 0.2, 0.25]
    assert [one.weight_decay for one in (base, large, huge)] == [0.05, 0.05, 0.04]
    assert (base.mixup, base.cutmix, base.label_smoothing, base.random_erasing) == (0.8, 1.0, 0.1, 0.25)
    assert [base.resize_for(224), huge.resize_for(448)] == [256, 448]
    assert all(one.batch_size // paper.compute.ranks % one.mixing_group == 0 for one in (base, large, huge))
    dense = paper.evaluations["ade20k-segment"]
    assert (dense.iterations, dense.warmup_iterations, dense.batch_size) == (160_000, 1_500, 16)
    assert (dense.crop_size, dense.stride, dense.width, dense.auxiliary_weight) == (512, 341, 768, 0.4)
    assert (dense.learning_rate, dense.layer_decay, dense.weight_decay, dense.drop_path) == (1e-4, 0.65, 0.05, 0.1)


def test_the_paper_detects_by_vitdet_and_offers_the_second_public_recipe(paper: Experiment):
    detect = paper.evaluations["coco-detect"]
    assert (detect.engine, detect.epochs, detect.warmup_epochs, detect.batch_size) == ("detectron2", 25, 1, 64)
    assert (detect.learning_rate, detect.layer_decay, detect.weight_decay, detect.drop_path) == (1e-4, 0.7, 0.1, 0.1)
    assert (detect.image_size, detect.scale_range) == (1024, (0.1, 2.0))
    assert detect.detector == DetectorSettings(window=14, relative_position=True)  # the rest are detectron2's defaults
    second = {"learning_rate": 1.6e-4, "layer_decay": 1.0, "weight_decay": 0.2}
    text = " ".join((ROOT / "configs" / "paper.yaml").read_text().replace("#", "").split())
    assert "set learning_rate: 1.6e-4, layer_decay: 1.0 and weight_decay: 0.2 above" in text
    DetectionSettings.model_validate(detect.model_dump() | second)
    shown = {column.evaluation for column in paper.tables["table2"].columns}
    assert shown == {"coco-detect", "ade20k-segment"}
    assert [column.value for column in paper.tables["table2"].columns] == [None, "mask_ap", None]


@pytest.mark.slow
def test_timm_knows_the_papers_encoders(paper: Experiment):
    import timm
    import torch

    for settings in paper.architectures.values():
        with torch.device("meta"):
            model = timm.create_model(str(settings.timm), num_classes=0, weight_init="skip")
        assert (model.embed_dim, len(model.blocks)) == (settings.width, settings.depth)
        assert model.blocks[0].attn.num_heads == settings.heads
        assert model.patch_embed.img_size == (settings.image_size, settings.image_size)
        assert model.patch_embed.patch_size == (settings.patch_size, settings.patch_size)


@pytest.mark.parametrize("file", FILES)
def test_a_configuration_opens_with_its_cost_and_its_result(file: str):
    text = (ROOT / "configs" / f"{file}.yaml").read_text()
    opening = text[: text.index("\nname:")]
    assert all(line.startswith("#") for line in opening.splitlines() if line)
    assert "Cost to expect" in opening
    assert "Result to expect" in opening
