import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor

from dseq_jepa.errors import UserError
from dseq_jepa.models.imports import import_checkpoint
from dseq_jepa.models.settings import ArchitectureSettings, PredictorSettings
from dseq_jepa.models.weights import load_encoder, read_card

TINY = ArchitectureSettings(
    label="ViT-test/8", image_size=32, patch_size=8, width=24, depth=2, heads=3, saliency_block=2,
    predictor=PredictorSettings(width=12, depth=1), recipe="r",
)  # fmt: skip
State = dict[str, Tensor]


def foreign(class_token: bool = True, classes: int = 0) -> TimmViT:
    """A ViT with learned positions that are nowhere zero, the class token's included."""
    torch.manual_seed(3)
    model = TimmViT(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=classes, class_token=class_token,
        global_pool="avg", fc_norm=False,
    )  # fmt: skip
    torch.nn.init.normal_(model.pos_embed)
    return model.eval()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def mae(state: State) -> Any:
    decoder = {"mask_token": torch.ones(1), "decoder_embed.weight": torch.ones(2), "decoder_blocks.0.x": torch.ones(1)}
    return {"model": state | decoder, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1e-3), "epoch": 1599}


def dino(state: State) -> Any:
    teacher = prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.ones(2)}
    return {
        "student": prefixed(teacher, "module."),
        "teacher": teacher,
        "epoch": 400,
        "dino_loss": {"center": torch.ones(1)},
    }


def ijepa(state: State) -> Any:
    encoder = prefixed(state, "module.")
    other = {key: value + 1 for key, value in encoder.items()}
    return {
        "encoder": other,
        "predictor": {"module.x": torch.ones(1)},
        "target_encoder": encoder,
        "epoch": 300,
        "lr": 1.0,
    }


FILES: dict[str, tuple[str, bool, Callable[[State], Any]]] = {
    "timm": ("timm", True, lambda state: state | {"head.weight": torch.ones(2, 24), "head.bias": torch.ones(2)}),
    "mae": ("mae", True, mae),
    "mae encoder only": ("mae", True, lambda state: {"model": state}),
    "dino": ("dino", True, dino),
    "dino backbone only": ("dino", True, lambda state: state),
    "ibot": ("ibot", True, lambda state: {"state_dict": state}),
    "ibot training": ("ibot", True, lambda state: dino(state | {"masked_embed": torch.ones(1, 24)})),
    "ijepa": ("ijepa", False, ijepa),
}


@pytest.mark.parametrize("name", FILES)
def test_an_imported_encoder_gives_the_features_of_the_original(tmp_path: Path, name: str) -> None:
    kind, class_token, arrange = FILES[name]
    model = foreign(class_token)
    torch.save(arrange(model.state_dict()), tmp_path / "x.pth")
    written = import_checkpoint(tmp_path / "x.pth", TINY, kind, tmp_path / "out")
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected_BLD = model.forward_features(images_BCHW)
        ours = load_encoder(written).read(images_BCHW, [2])[0]
        again = timm.create_model(read_card(written).timm.model, **read_card(written).timm.kwargs).eval()
        again.load_state_dict(load_file(written), strict=True)
        assert torch.equal(again.forward_features(images_BCHW), expected_BLD)
    assert torch.allclose(ours.patches_BTD, expected_BLD[:, int(class_token) :], atol=1e-5)
    if class_token:
        assert ours.class_BD is not None
        assert torch.allclose(ours.class_BD, expected_BLD[:, 0], atol=1e-5)


def test_keys_that_are_left_out_are_listed(tmp_path: Path) -> None:
    torch.save(mae(foreign().state_dict()), tmp_path / "x.pth")
    provenance = read_card(import_checkpoint(tmp_path / "x.pth", TINY, "mae", tmp_path / "out")).provenance
    assert provenance["unused_keys"] == ["decoder_blocks.0.x", "decoder_embed.weight", "mask_token"]
    assert provenance["unused_entries"] == ["args", "epoch", "optimizer"]


def test_safetensors_and_another_normalisation(tmp_path: Path) -> None:
    save_file(foreign().state_dict(), tmp_path / "x.safetensors")
    half = (0.5, 0.5, 0.5)
    card = read_card(import_checkpoint(tmp_path / "x.safetensors", TINY, "timm", tmp_path / "out", mean=half, std=half))
    assert (card.mean, card.std) == (half, half)


def test_a_wrong_architecture_is_refused_with_the_mismatches(tmp_path: Path) -> None:
    torch.save(foreign().state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"pos_embed is \(1, 17, 24\), expected \(1, 65, 24\)") as refused:
        import_checkpoint(tmp_path / "x.pth", TINY.model_copy(update={"patch_size": 4}), "dino", tmp_path / "out")
    assert "patch_embed.proj.weight is (24, 3, 8, 8), expected (24, 3, 4, 4)" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    torch.save(foreign().state_dict() | {"blocks.0.ls1.gamma": torch.ones(24)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"blocks\.0\.ls1\.gamma \(24,\) is unknown"):
        import_checkpoint(tmp_path / "x.pth", TINY, "timm", tmp_path / "out")


def test_the_wrong_kind_is_named(tmp_path: Path) -> None:
    torch.save(ijepa(foreign(class_token=False).state_dict()), tmp_path / "x.pth")
    with pytest.raises(UserError, match="not a checkpoint in the layout of mae"):
        import_checkpoint(tmp_path / "x.pth", TINY, "mae", tmp_path / "out")


class Surprise:
    """Something whose unpickling runs code: it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_foreign_object_is_never_unpickled(tmp_path: Path) -> None:
    torch.save({"model": Surprise(tmp_path / "trace")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="never unpickled"):
        import_checkpoint(tmp_path / "x.pth", TINY, "mae", tmp_path / "out")
    assert not (tmp_path / "trace").exists()


def test_a_misspelt_kind_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='did you mean "ijepa"'):
        import_checkpoint(tmp_path / "x.pth", TINY, "i-jepa", tmp_path / "out")


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"x\.pth"):
        import_checkpoint(tmp_path / "x.pth", TINY, "mae", tmp_path / "out")
