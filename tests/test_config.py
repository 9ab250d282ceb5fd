"""A configuration that cannot mean anything is rejected, with the key that is wrong and the nearest valid name.

pytest tests/test_config.py
"""

import copy
import datetime
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dseq_jepa.config import Experiment, from_mapping, load, read_yaml
from dseq_jepa.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = ["demo.yaml", "paper.yaml"]
KeyPath = tuple[str | int, ...]


def parsed(name: str) -> dict[str, Any]:
    return copy.deepcopy(read_yaml(CONFIGS / name))


def walk(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key path and its value, containers included."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*path, key), value
        yield from walk(value, (*path, key))


def changed(mapping: dict[str, Any], path: KeyPath, value: Any, *, key: str | None = None) -> dict[str, Any]:
    """A copy in which one entry has another value, or another key in the same place."""
    if len(path) > 1:
        inner = changed(mapping[path[0]], path[1:], value, key=key)  # type: ignore[index]
        path, value, key = path[:1], inner, None
    if isinstance(mapping, list):
        return [value if i == path[0] else entry for i, entry in enumerate(mapping)]  # type: ignore[return-value]
    renamed = {(key or name) if name == path[0] else name: entry for name, entry in mapping.items()}
    return {**renamed, key or path[0]: value}  # type: ignore[dict-item]


def problems(mapping: dict[str, Any]) -> list[str]:
    """What is wrong with a configuration; empty: nothing."""
    try:
        from_mapping(mapping, "x.yaml")
    except ConfigError as error:
        return error.problems
    return []


def misspellings(key: str) -> list[str]:
    """A letter lost, a letter doubled, two letters exchanged."""
    middle = len(key) // 2
    swapped = key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :]
    variants = [key[:middle] + key[middle + 1 :], key[:middle] + key[middle] + key[middle:], swapped]
    return [variant for variant in variants if variant and variant != key]


@pytest.mark.parametrize("file", FILES)
def test_the_files_are_accepted(file: str):
    assert isinstance(load(CONFIGS / file), Experiment)
    assert problems(parsed(file)) == []


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", range(3))
def test_every_key_misspelt_once_is_rejected_by_name(file: str, variant: int):
    mapping = parsed(file)
    tried = 0
    for path, value in walk(mapping):
        key = path[-1]
        if isinstance(key, int) or variant >= len(misspellings(key)):
            continue
        wrong = misspellings(key)[variant]
        found = problems(changed(mapping, path, value, key=wrong))
        where = ".".join(map(str, (*path[:-1], wrong)))
        named = any(wrong in line and key in line for line in found)
        assert named, f"{where} (for {key}) gives {found or 'no error'}"
        tried += 1
    assert tried > 150, "the walk does not reach the whole file"


@pytest.mark.parametrize("file", FILES)
def test_every_number_made_a_string_is_rejected_by_name(file: str):
    mapping = parsed(file)
    numbers = [(p, v) for p, v in walk(mapping) if isinstance(v, int | float) and not isinstance(v, bool)]
    assert len(numbers) > 70
    for path, value in numbers:
        where = ".".join(map(str, path))
        found = problems(changed(mapping, path, str(value)))
        assert any(line.startswith(f"{where}: expected a number, got the text") for line in found), (where, found)


@pytest.mark.parametrize("file", FILES)
def test_every_value_of_another_type_is_rejected_by_name(file: str):
    mapping = parsed(file)
    for path, value in walk(mapping):
        where = ".".join(map(str, path))
        for wrong in ([[]], {"a": 1}, 1.5 if isinstance(value, str) else "text"):
            if type(wrong) is type(value):
                continue  # a list or a mapping of other content has its own paths
            found = problems(changed(mapping, path, wrong))
            assert any(line.startswith(where) for line in found), (where, wrong, found)


@pytest.mark.parametrize("file", FILES)
def test_every_required_key_that_is_missing_is_named(file: str):
    mapping = parsed(file)
    for key in ("name", "seeds", "compute", "loading", "data", "architectures", "recipes", "methods", "tables"):
        found = problems({name: value for name, value in mapping.items() if name != key})
        assert f"{key}: required but not given" in found


# Each case: where in demo.yaml, the value, and what the message has to say.
DANGLING = {
    "method of a row": (("tables", "table1", "rows", 1, "method"), "ijepa", 'did you mean "i-jepa"'),
    "architecture of a row": (("tables", "table1", "rows", 1, "architecture"), "vit-min", 'did you mean "vit-mini"'),
    "baseline of a row": (("tables", "table1", "rows", 2, "baseline"), "IJEPA", 'did you mean "I-JEPA"'),
    "baseline of another size": (("tables", "table1", "rows", 2, "baseline"), "LeJEPA", '"LeJEPA" is not defined'),
    "evaluation of a column": (
        ("tables", "table1", "columns", 0, "evaluation"),
        "imagenet-liner",
        'did you mean "imagenet-linear"',
    ),
    "metric of the average": (("tables", "table1", "average", 0), "imagenet_top1", "tables.table1.average.0"),
    "metric twice": (("tables", "table3", "columns", 1, "metric"), "clevr_count_top1", "is a column already"),
    "row twice": (("tables", "table3", "rows", 1, "reported"), "I-JEPA", "is a row already"),
    "table of another number": (("tables", "table3", "number"), 2, 'it is called "table2"'),
    "kind of an evaluation": (("evaluations", "cub-linear", "kind"), "prob", 'did you mean "probe"'),
    "pictures of another kind": (("evaluations", "clevr-count", "kind"), "finetune", "evaluations.clevr-count"),
    "data of an evaluation": (("evaluations", "cub-linear", "data"), "cup", 'did you mean "cub"'),
    "label of other data": (("evaluations", "cub-linear", "target"), "count", "count is not a label of cub"),
    "class of CLEVR": (("evaluations", "clevr-count", "target"), "class", "expected count or distance"),
    "recipe": (("architectures", "vit-mini", "recipe"), "pretrain-min", 'did you mean "pretrain-mini"'),
    "data of pre-training": (("pretraining_data",), "imagenets", 'did you mean "imagenet"'),
    "unused method": (("methods", "extra"), {"label": "X", "class_token": False}, "methods.extra"),
    "unused recipe": (("recipes", "extra"), None, "recipes.extra"),
    "layout not generated": (("miniature", "val_images"), {"imagenet": 500}, "no cub, which data.cub needs"),
    "group that is no folder": (("evaluations", "cub-linear", "group"), "../up", "evaluations.cub-linear.group"),
    "patch size": (("architectures", "vit-mini", "patch_size"), 7, "does not divide image_size 64"),
    "nearest image size": (
        ("architectures", "vit-mini", "image_size"),
        65,
        "the nearest sizes that work are 64 and 72",
    ),
    "heads": (("architectures", "vit-mini", "heads"), 5, "5 heads do not divide the width 64"),
    "predictor heads": (("architectures", "vit-mini", "predictor", "heads"), 5, "5 predictor heads do not divide"),
    "saliency block": (("architectures", "vit-mini", "saliency_block"), 7, "beyond the 4 blocks"),
    "whole map": (("methods", "dseq-jepa", "regions", "min_patches"), 64, "no region could ever be found"),
    "more regions than fit": (
        ("methods", "dseq-n7", "regions", "count"),
        12,
        "regions.count: N is 12, but vit-mini's 8 x 8 patches have room for at most 10 separate components of 3",
    ),
    "no size is allowed": (
        ("methods", "dseq-jepa", "regions", "max_region_scale"),
        0.04,
        "3 patches or more and 0.0 to 0.04 of the image beside some background; no region could ever be found",
    ),
    "order that does not exist": (
        ("methods", "dseq-jepa", "order"),
        "spatail",
        "methods.dseq-jepa.order: there is no 'spatail'; did you mean \"spatial\"?",
    ),
    "saliency that does not exist": (
        ("methods", "dseq-gradcam", "regions", "saliency"),
        "grad-cam",
        "methods.dseq-gradcam.regions.saliency: there is no 'grad-cam'; did you mean \"gradcam\"?",
    ),
    "cost of other data": (("evaluations", "cost", "data"), "cub", "costs are of pre-training; expected imagenet"),
    "no visible context": (("methods", "i-jepa", "blocks", "min_context"), 60, "visible patches cannot be kept"),
    "contrastive parts": (("recipes", "pretrain-mini", "accumulation"), 2, "its statistics are over the whole batch"),
    "truncation of nothing": (
        ("methods", "dseq-truncated", "truncate"),
        5,
        "methods.dseq-truncated: truncate 5 leaves nothing out: an image has at most 5 ranks",
    ),
    "crop beside the patches": (
        ("evaluations", "ade20k-segment", "crop_size"),
        65,
        "ade20k-segment.crop_size: 65 is not a multiple of the 8 px patches of vit-mini",
    ),
    "one crop": (("evaluations", "ade20k-segment", "batch_size"), 1, "BatchNorm of one value per crop needs two crops"),
    "square beside the patches": (
        ("evaluations", "coco-detect", "image_size"),
        72,
        "coco-detect.image_size: 72 is not a multiple of two 8 px patches of vit-mini",
    ),
    "patches that no pyramid takes": (
        ("architectures", "vit-mini", "patch_size"),
        2,
        "coco-detect.kind: the pyramid needs patches of 4, 8, 12, ... px and cannot be built on the 2 px patches",
    ),
    "more than the training set": (("selection", "bank_fraction"), 0.99, "together at most 1"),
    "beta": (("recipes", "pretrain-mini", "betas"), [0.9, 1.0], "recipes.pretrain-mini.betas.1: input should be less"),
    "beta of an evaluation": (("evaluations", "coco-detect", "betas"), [-0.1, 0.9], "coco-detect.betas.0"),
    "warm-up": (("recipes", "pretrain-mini", "warmup_epochs"), 3000, "longer than the"),
    "epochs twice": (("evaluations", "cub-linear", "epochs"), [28, 28], "epochs [28, 28] name one twice"),
    "epochs that are no list": (("evaluations", "cub-linear", "epochs"), 28, "evaluations.cub-linear.epochs"),
    "milestone": (("evaluations", "cub-linear", "milestones"), [8, 4], "must rise"),
    "milestone after the end": (("evaluations", "cub-linear", "milestones"), [800], "must rise within"),
    "small resize": (("evaluations", "cub-linear", "test_resize"), 64, "greater than or equal to 224"),
    "seed twice": (("seeds",), [0, 0], "must be different numbers"),
    "number as 1e-4": (("evaluations", "cub-linear", "weight_decay"), "1e-4", "write 1.0e-4"),
    "not a number": (
        ("evaluations", "cub-linear", "weight_decay"),
        float("nan"),
        "evaluations.cub-linear.weight_decay",
    ),
    "infinite": (("recipes", "pretrain-mini", "learning_rate", "peak"), float("inf"), "learning_rate.peak"),
    "truth as a number": (("compute", "threads"), True, "compute.threads"),
    "a date as a number": (("compute", "threads"), datetime.date(2024, 1, 1), "compute.threads"),
    "folder name": (("name",), "De Mo", "name"),
    "saliency without a class token": (("methods", "dseq-jepa", "class_token"), False, "set class_token: true"),
    "order of random blocks": (("methods", "i-jepa", "order"), "random", "random is of salient regions"),
    "steps of a flat prediction": (("methods", "i-jepa", "truncate"), 3, "flat prediction has no order"),
    "own row without a method": (("tables", "table1", "rows", 0, "reported"), None, "tables.table1.rows.0"),
}


@pytest.mark.parametrize("case", DANGLING)
def test_what_cannot_be_run_is_rejected_with_the_reason(case: str):
    path, value, expected = DANGLING[case]
    mapping = parsed("demo.yaml")
    if case == "unused method":
        value = mapping["methods"]["i-jepa"]
    if case == "unused recipe":
        value = mapping["recipes"]["pretrain-mini"]
    found = problems(changed(mapping, path, value))
    assert any(expected in line for line in found), found


# Each case: entries of demo.yaml that are sound alone, and what the message has to say of them together.
TOGETHER: dict[str, tuple[dict[KeyPath, Any], str]] = {
    "batch and ranks": (
        {("compute", "ranks"): 3},
        "recipes.pretrain-mini.batch_size: 32 cannot be shared equally by 3 ranks (compute.ranks)",
    ),
    "parts and ranks": (
        {("compute", "ranks"): 2, ("recipes", "pretrain-mini", "accumulation"): 32},
        "recipes.pretrain-mini.accumulation: 32 does not divide a rank's 16 images: batch_size is 32 and",
    ),
    "probe and ranks": (
        {("compute", "ranks"): 2, ("evaluations", "cub-linear", "batch_size"): 63},
        "evaluations.cub-linear.batch_size: 63 cannot be shared",
    ),
    "mixing and ranks": (
        {("compute", "ranks"): 2, ("evaluations", "imagenet-finetune", "mixing_group"): 32},
        "evaluations.imagenet-finetune.mixing_group: 32 does not divide a rank's 16 images",
    ),
    "fine-tuning of one architecture and ranks": (
        {
            ("compute", "ranks"): 2,
            ("evaluations", "imagenet-finetune", "architectures"): {"vit-mini": {"batch_size": 48}},
        },
        "evaluations.imagenet-finetune.architectures.vit-mini.mixing_group: 16 does not divide a rank's 24 images",
    ),
    "segmentation and ranks": (
        {("compute", "ranks"): 2, ("evaluations", "ade20k-segment", "batch_size"): 3},
        "evaluations.ade20k-segment.batch_size: 3 cannot be shared",
    ),
    "detection and ranks": (
        {("compute", "ranks"): 2, ("evaluations", "coco-detect", "batch_size"): 3},
        "evaluations.coco-detect.batch_size: 3 cannot be shared",
    ),
    "last4 and depth": (
        {("architectures", "vit-mini", "depth"): 3, ("architectures", "vit-mini", "saliency_block"): 3},
        "evaluations.imagenet-linear.features: last4 needs 4 blocks and cannot be read from the 3 of vit-mini",
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_what_cannot_be_run_together_is_rejected_with_the_reason(case: str):
    changes, expected = TOGETHER[case]
    mapping = parsed("demo.yaml")
    for path, value in changes.items():
        *section, key = path
        entry: Any = mapping
        for name in section:
            entry[name] = dict(entry[name])  # YAML's anchors are shared
            entry = entry[name]
        entry[key] = value
    found = problems(mapping)
    assert any(line.startswith(expected) for line in found), found


def test_a_method_of_ones_own_needs_no_reported_row():
    mapping = parsed("demo.yaml")
    mapping["methods"] = {**mapping["methods"], "mine": {**mapping["methods"]["dseq-jepa"], "label": "Mine"}}
    row = {"reported_architecture": "ViT-B/16", "method": "mine", "architecture": "vit-mini", "baseline": "I-JEPA"}
    mapping["tables"]["table1"]["rows"].append(row)
    assert problems(mapping) == []
    experiment = from_mapping(mapping, "x.yaml")
    assert experiment.tables["table1"].rows[-1].system(experiment.methods) == "Mine"


def test_without_tables_nothing_has_to_be_in_one():
    assert problems({**parsed("demo.yaml"), "tables": {}}) == []


def test_evaluations_of_a_group_run_together():
    experiment = load(CONFIGS / "paper.yaml")
    assert experiment.groups["fine-grained"] == ["cub-linear", "cars-linear"]
    assert sorted(name for group in experiment.groups.values() for name in group) == sorted(experiment.evaluations)
    assert all(name in experiment.groups[experiment.group_of(name)] for name in experiment.evaluations)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seeds: [0]\nname: a\nseeds: [1]\n", 3),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4),
        ("a: {b: 1, b: 2}\n", 1),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  d: 1\n  d: 2\n", 5),
    ],
)
def test_a_key_written_twice_is_refused_with_its_line(tmp_path: Path, text: str, line: int):
    file = tmp_path / "twice.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"line {line}: key '\w+' is written twice"):
        read_yaml(file)


def test_merge_keys_override_and_chain(tmp_path: Path):
    file = tmp_path / "merged.yaml"
    file.write_text(
        textwrap.dedent("""
            a: &a {x: 1, y: 1}
            deep: {inner: &b {<<: *a, y: 2}}
            c: {<<: *b, z: 3}
            d: {<<: [*b, *a]}
        """)
    )
    content = read_yaml(file)
    assert content["deep"]["inner"] == {"x": 1, "y": 2}
    assert content["c"] == {"x": 1, "y": 2, "z": 3}
    assert content["d"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1: "),
        ("a: \x00", "not a text file: "),
        ("- a\n- b\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: !!python/object:os.system x", "line 1: "),
        ("? [a, b]\n: 1\n", "line 1: a key must be a name"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(tmp_path: Path, text: str, message: str):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{file}: {message}"):
        read_yaml(file)


def test_each_problem_is_a_line_that_starts_with_the_file():
    mapping = changed(parsed("demo.yaml"), ("seeds",), "0", key="seed")
    with pytest.raises(ConfigError) as caught:
        from_mapping(mapping, "my.yaml")
    *lines, last = str(caught.value).splitlines()
    assert last == "Nothing was started."
    assert lines == [
        "my.yaml: seeds: required but not given",
        'my.yaml: seed: unknown key; did you mean "seeds"?',
    ]


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot be read: No such file or directory"):
        load(tmp_path / "nowhere.yaml")
