import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from dseq_jepa.errors import UserError
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    card_path,
    export_encoder,
    load_encoder,
    read_card,
    refuse_other_encoder,
)
from tests.models.checkpoints import MODEL, TINY, pretrain_job, write_checkpoint
from tests.models.checkpoints import encoder as encoder_of


def write_selection(folder: Path, encoder: VisionTransformer) -> Path:
    """A run's folder with one checkpoint, and the selection that chose it."""
    write_checkpoint(folder / "run", encoder)
    (folder / "chosen").mkdir()
    selection = folder / "chosen" / "selection.json"
    chosen = {"file": "../run/checkpoint-050.safetensors", "percent": 50, "epoch": 2, "knn_top1": 41.5}
    selection.write_text(json.dumps({"schema": 1, "chosen": chosen, "reason": "because", "candidates": [chosen]}))
    return selection


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("name", [None, "vit_tiny_patch16_224"])
def test_timm_takes_the_export_and_gives_our_features(tmp_path: Path, class_token: bool, name: str | None) -> None:
    ours = encoder_of(class_token, TINY.model_copy(update={"timm": name}))
    written = export_encoder(write_selection(tmp_path, ours), tmp_path / "out")
    described = json.loads((tmp_path / "out" / "encoder.json").read_text())["timm"]
    theirs = timm.create_model(described["model"], **described["kwargs"]).eval()
    theirs.load_state_dict(load_file(written), strict=True)
    images_BCHW = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = ours.read(images_BCHW, [4])[0]
        tokens_BLD = theirs.forward_features(images_BCHW)
        assert torch.allclose(tokens_BLD[:, int(class_token) :], expected.patches_BTD, atol=1e-5)
        assert torch.allclose(theirs(images_BCHW), expected.patches_BTD.mean(1), atol=1e-5)
        if expected.class_BD is not None:
            assert torch.allclose(tokens_BLD[:, 0], expected.class_BD, atol=1e-5)


@pytest.mark.parametrize("class_token", [False, True])
def test_loading_an_export_gives_the_target_encoder_back(tmp_path: Path, class_token: bool) -> None:
    ours = encoder_of(class_token)
    loaded = load_encoder(export_encoder(write_selection(tmp_path, ours), tmp_path / "out"))
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for mine, theirs in zip(ours.read(images_BCHW, [1, 4]), loaded.read(images_BCHW, [1, 4]), strict=True):
            assert torch.equal(mine.patches_BTD, theirs.patches_BTD)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_card_says_what_the_encoder_is_and_where_it_comes_from(tmp_path: Path) -> None:
    written = export_encoder(write_selection(tmp_path, encoder_of(True)), tmp_path / "out")
    card = read_card(written)
    assert (card.architecture, card.class_token, card.epoch, card.score) == (TINY, True, 2, 41.5)
    assert card.provenance["config_digest"] == pretrain_job(True).digest
    assert card.provenance["selected"] == "because"
    assert (tmp_path / "out" / "provenance.json").exists()
    on_disk = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert on_disk["schema"] == 1
    assert (on_disk["image_size"], on_disk["patch_size"]) == (32, 8)


def test_normalisation_of_the_card_is_that_of_the_pictures() -> None:
    from dseq_jepa.data.transforms import MEAN, STD

    assert (IMAGENET_MEAN, IMAGENET_STD) == (MEAN, STD)


def test_every_mismatch_is_in_one_error(tmp_path: Path) -> None:
    written = export_encoder(write_selection(tmp_path, encoder_of(False)), tmp_path / "out")
    tensors = load_file(written)
    tensors["blocks.0.norm1.bias"] = torch.zeros(7)
    tensors["extra"] = torch.zeros(1)
    del tensors["norm.weight"]
    save_file(tensors, written)
    with pytest.raises(UserError) as refused:
        load_encoder(written)
    for part in (str(written), "blocks.0.norm1.bias is (7,), expected (24,)", "norm.weight (24,) is missing", "extra"):
        assert part in str(refused.value)


def test_a_checkpoint_that_is_not_its_architecture_is_not_exported(tmp_path: Path) -> None:
    shallow = encoder_of(False, TINY.model_copy(update={"depth": 3}))
    shallow.settings = TINY
    with pytest.raises(UserError, match=r"blocks\.3\.attn\.qkv\.weight \(72, 24\) is missing"):
        export_encoder(write_selection(tmp_path, shallow), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    selection = write_selection(tmp_path, encoder_of(False))
    checkpoint = tmp_path / "run" / "checkpoint-050.safetensors"
    if damage == "missing":
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"checkpoint-050\.safetensors: cannot be read"):
        export_encoder(selection, tmp_path / "out")


def test_a_missing_or_foreign_card_is_named(tmp_path: Path) -> None:
    written = export_encoder(write_selection(tmp_path, encoder_of(False)), tmp_path / "out")
    card = tmp_path / "out" / "encoder.json"
    card.write_text("{}")
    with pytest.raises(UserError, match=r"encoder\.json: not an encoder's card"):
        load_encoder(written)
    card.unlink()
    with pytest.raises(UserError, match=r"encoder\.json: the card"):
        load_encoder(written)


def test_exported_positions_are_those_of_the_encoder(tmp_path: Path) -> None:
    written = export_encoder(write_selection(tmp_path, encoder_of(True)), tmp_path / "out")
    position_1LD = load_file(written)["pos_embed"].numpy()
    assert np.array_equal(position_1LD[:, 1:], encoder_of(True).pos_embed.numpy())
    assert not position_1LD[:, 0].any()


def test_results_never_stand_under_another_architectures_name(tmp_path: Path) -> None:
    written = export_encoder(write_selection(tmp_path, encoder_of(False)), tmp_path / "out")
    refuse_other_encoder(written, MODEL)
    other = MODEL.model_copy(update={"architecture": "vit-b16"})
    message = rf"{written}: is an encoder of a, and its results would stand under vit-b16. Give --architecture a, or"
    with pytest.raises(UserError, match=message):
        refuse_other_encoder(written, other)
    card = json.loads(card_path(written).read_text())
    card["provenance"] = {"kind": "mae"}
    card_path(written).write_text(json.dumps(card))
    refuse_other_encoder(written, other)  # an imported encoder has no name here
