from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dseq_jepa.data.catalog import load_split
from dseq_jepa.data.settings import LoadingSettings
from dseq_jepa.data.transforms import TestView, normalise
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.features import FrozenEncoder, collect
from dseq_jepa.models.imports import import_checkpoint
from dseq_jepa.training.distributed import World
from tests.evaluation.pictures import make_imagenet
from tests.models.checkpoints import TINY, encoder

CPU = torch.device("cpu")
IMAGES_BCHW = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ALL: Any = ["last4", "last", "mean", "cls"]


def frozen(class_token: bool = True) -> FrozenEncoder:
    return FrozenEncoder(encoder(class_token), CPU, name="test")


def test_features_are_pooled_tokens_after_the_final_norm() -> None:
    found = frozen()(IMAGES_BCHW, ALL)
    with torch.no_grad():
        blocks = encoder(True).read(normalise(IMAGES_BCHW), [1, 2, 3, 4])
    means = [tokens.patches_BTD.mean(1) for tokens in blocks]
    assert torch.allclose(found["last4"], torch.cat(means, dim=1), atol=1e-6)
    assert torch.allclose(found["last"], means[-1], atol=1e-6)
    assert torch.equal(found["mean"], found["last"])
    assert blocks[-1].class_BD is not None
    assert torch.allclose(found["cls"], blocks[-1].class_BD, atol=1e-6)
    assert {kind: table.shape[1] for kind, table in found.items()} == {kind: frozen().width(kind) for kind in ALL}


def test_an_encoder_without_a_class_token_gives_its_patch_mean() -> None:
    found = frozen(class_token=False)(IMAGES_BCHW, ALL)
    assert torch.equal(found["cls"], found["mean"])


def test_the_last_four_of_three_blocks_is_an_error() -> None:
    shallow = FrozenEncoder(encoder(True, TINY.model_copy(update={"depth": 3})), CPU, name="shallow")
    with pytest.raises(UserError, match="shallow: has 3 blocks; features last4 need 4"):
        shallow.width("last4")


def test_pictures_are_normalised_as_the_card_says(tmp_path: Path) -> None:
    state = encoder(True).state_dict() | {"pos_embed": torch.zeros(1, 17, 24)}
    torch.save(state, tmp_path / "x.pth")
    half = (0.5, 0.5, 0.5)
    loaded = FrozenEncoder.load(import_checkpoint(tmp_path / "x.pth", TINY, "timm", tmp_path, mean=half, std=half), CPU)
    with torch.no_grad():
        tokens = loaded.model.read(IMAGES_BCHW.float() / 127.5 - 1, [4])[0]
    assert torch.allclose(loaded(IMAGES_BCHW, ["mean"])["mean"], tokens.patches_BTD.mean(1), atol=1e-5)


def test_collected_rows_are_those_of_the_pictures_asked_for(tmp_path: Path) -> None:
    split = load_split(make_imagenet(tmp_path, train=40), "train")
    ids = np.array([31, 2, 17, 8])
    (found,) = collect(
        [frozen()], split, ids, view=TestView(32, 32), kinds=["mean"], world=World(0, 1, CPU),
        loading=LoadingSettings(workers=0), label="test",
    )  # fmt: skip
    (alone,) = collect(
        [frozen()], split, ids[2:3], view=TestView(32, 32), kinds=["mean"], world=World(0, 1, CPU),
        loading=LoadingSettings(workers=0), label="test",
    )  # fmt: skip
    assert found.ids.tolist() == ids.tolist()
    assert torch.allclose(found.features["mean"][2], alone.features["mean"][0], atol=1e-6)
    few = found.only(np.array([8, 17]))
    assert few.ids.tolist() == [17, 8]
    assert torch.equal(few.features["mean"], found.features["mean"][2:])
