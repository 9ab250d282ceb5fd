"""Exported encoders: timm's key names in safetensors, beside them a card that says what they are (docs/protocols.md 6).

    dseq-jepa export --selection out/selection.json --out out/          # writes encoder.safetensors and encoder.json
    card = read_card(Path("out/encoder.safetensors"))
    timm.create_model(card.timm.model, **card.timm.kwargs).load_state_dict(load_file("out/encoder.safetensors"))

Exporting only moves arrays between files and imports no torch.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dseq_jepa.closed import Closed
from dseq_jepa.errors import UserError
from dseq_jepa.files import atomically, file_sha256, write_atomically
from dseq_jepa.jobs import Model, PretrainJob
from dseq_jepa.models.positions import sincos_2d
from dseq_jepa.models.settings import ArchitectureSettings
from dseq_jepa.provenance import Provenance, code_version

if TYPE_CHECKING:
    from dseq_jepa.models.vit import VisionTransformer

ENCODER = "encoder.safetensors"
TARGET = "target_encoder."
"""Prefix of the exported encoder's keys in a checkpoint."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_ANY_VIT = "vit_base_patch16_224"
_MAX_LISTED = 8

Shape = tuple[int, ...]


class TimmModel(Closed):
    """What to call: timm.create_model(model, **kwargs)."""

    model: str
    kwargs: dict[str, Any]
    """Every size is given, so that any of timm's plain ViT names builds this encoder."""


class EncoderCard(Closed):
    """encoder.json: all that is needed to use encoder.safetensors, and where it comes from."""

    model_config = ConfigDict(populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    architecture: ArchitectureSettings
    class_token: bool
    timm: TimmModel
    image_size: int
    patch_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from channels on [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides the channels afterwards."""
    checkpoint: str
    """File that the weights were taken from."""
    epoch: float | None
    score: float | None
    """kNN accuracy in percent that the checkpoint was chosen by; null for an imported one."""
    provenance: dict[str, Any]

    @classmethod
    def of(cls, architecture: ArchitectureSettings, *, class_token: bool, **source: Any) -> "EncoderCard":
        """The card of an encoder; `source` is where it comes from: the remaining fields."""
        return cls(
            architecture=architecture,
            class_token=class_token,
            timm=timm_model(architecture, class_token),
            image_size=architecture.image_size,
            patch_size=architecture.patch_size,
            **source,
        )


def timm_model(architecture: ArchitectureSettings, class_token: bool) -> TimmModel:
    """What timm calls the encoder: its pooled features are patch means, and it has no head."""
    kwargs = {
        "img_size": architecture.image_size,
        "patch_size": architecture.patch_size,
        "embed_dim": architecture.width,
        "depth": architecture.depth,
        "num_heads": architecture.heads,
        "num_classes": 0,
        "class_token": class_token,
        "global_pool": "avg",
        "fc_norm": False,
    }
    return TimmModel(model=architecture.timm or _ANY_VIT, kwargs=kwargs)


def encoder_shapes(architecture: ArchitectureSettings, class_token: bool) -> dict[str, Shape]:
    """Every key of an exported encoder and its shape: timm's names, `pos_embed` included."""
    width, patch = architecture.width, architecture.patch_size
    shapes: dict[str, Shape] = {"cls_token": (1, 1, width)} if class_token else {}
    shapes["pos_embed"] = (1, architecture.patches + class_token, width)
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(architecture.depth):
        for name, shape in linear.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.weight": (width,), f"blocks.{block}.{name}.bias": (width,)}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def refuse_mismatches(source: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compare all keys and shapes.

    Raises:
        UserError: one sentence that lists the mismatches.

    """
    problems = list(_mismatches(found, expected))
    if problems:
        listed = "; ".join(problems[:_MAX_LISTED])
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise UserError(
            f"{source} does not hold this architecture: {listed}{more}. Name the architecture it was made with."
        )


def refuse_other_architecture(source: str, about: Mapping[str, Any], expected: ArchitectureSettings) -> None:
    """Compare the sizes that a checkpoint was made with; shapes do not show all of them, such as the heads.

    Args:
        source: the file, for the error.
        about: its metadata, with the job that made it.
        expected: the architecture that it is read as.

    Raises:
        UserError: one sentence that names both architectures and what differs.

    """
    made = PretrainJob.parse(json.dumps(about["job"])).architecture
    sizes = ("image_size", "patch_size", "width", "depth", "heads")
    different = [
        f"{name} {getattr(made, name)}, not {getattr(expected, name)}"
        for name in sizes
        if getattr(made, name) != getattr(expected, name)
    ]
    if different:
        raise UserError(
            f"{source}: is a checkpoint of {made.label} and not of {expected.label} ({'; '.join(different)}). Name the "
            "architecture it was made with."
        )


def refuse_other_encoder(encoder: Path, model: Model) -> None:
    """Refuse to measure an exported encoder under another architecture's name; an imported one has none.

    Raises:
        UserError: naming the encoder and both architectures.

    """
    made = read_card(encoder).provenance.get("architecture", model.architecture)
    if made != model.architecture:
        raise UserError(
            f"{encoder}: is an encoder of {made}, and its results would stand under {model.architecture}. Give "
            f"--architecture {made}, or the encoder of {model.architecture}."
        )


def _mismatches(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> Iterator[str]:
    for key, shape in expected.items():
        if key not in found:
            yield f"{key} {shape} is missing"
        elif found[key] != shape:
            yield f"{key} is {found[key]}, expected {shape}"
    for key in found.keys() - expected.keys():
        yield f"{key} {found[key]} is unknown"


def positions(architecture: ArchitectureSettings, class_token: bool) -> NDArray[np.float32]:
    """The fixed sin-cos positions as `pos_embed`, (1, T, D) or with a zero row for the class token (1, 1+T, D)."""
    rows_TD = sincos_2d(architecture.grid, architecture.width)
    if class_token:
        rows_TD = np.concatenate([np.zeros_like(rows_TD[:1]), rows_TD])
    return rows_TD[None]


def export_encoder(selection: Path, out: Path) -> Path:
    """Write the chosen checkpoint's target encoder as out/encoder.safetensors with its card out/encoder.json.

    Args:
        selection: selection.json; the checkpoint's path in it is relative to its folder.
        out: folder to write to.

    Returns:
        The safetensors file.

    Raises:
        UserError: when the checkpoint is missing, damaged or not the architecture that it says it is.

    """
    choice = json.loads(selection.read_text())
    chosen = choice["chosen"]
    checkpoint = selection.parent / chosen["file"]
    tensors, metadata = read_target(checkpoint)
    job = PretrainJob.parse(json.dumps(metadata["job"]))
    provenance = Provenance.begin(job.to_json(), job.digest)
    class_token = job.method.class_token
    tensors["pos_embed"] = positions(job.architecture, class_token)
    refuse_mismatches(
        str(checkpoint), {key: array.shape for key, array in tensors.items()},
        encoder_shapes(job.architecture, class_token),
    )  # fmt: skip
    card = EncoderCard.of(
        job.architecture,
        class_token=class_token,
        checkpoint=checkpoint.name,
        epoch=float(metadata["epoch"]),
        score=chosen["knn_top1"],
        provenance={
            **job.model.model_dump(),
            "config_digest": job.digest,
            "code_version": code_version(),
            "checkpoint_sha256": file_sha256(checkpoint),
            "selected": choice["reason"],
        },
    )
    written = write_encoder(out, tensors, card)
    provenance.finish(out, data={}, decoder="none")
    return written


def read_target(checkpoint: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The target encoder's tensors of a checkpoint, under timm's names, and the file's metadata.

    Raises:
        UserError: naming the file when it is missing, damaged or not a pre-training's.

    """
    try:
        with safe_open(checkpoint, framework="numpy") as file:
            keys = [key for key in file.keys() if key.startswith(TARGET)]  # noqa: SIM118 - not a mapping
            tensors = {key.removeprefix(TARGET): file.get_tensor(key) for key in keys}
            metadata = json.loads((file.metadata() or {}).get("run", "{}"))
    except (OSError, SafetensorError) as error:
        raise unreadable(checkpoint, error) from None
    if missing := {"epoch", "percent", "job"} - metadata.keys():
        raise UserError(
            f"{checkpoint}: has no {' and '.join(sorted(missing))} in its metadata; expected a checkpoint of "
            "`dseq-jepa pretrain`. Weights of other projects come in through `dseq-jepa import`."
        )
    return tensors, metadata


def unreadable(path: Path, error: Exception) -> UserError:
    """The sentence for a weights file that cannot be read."""
    return UserError(f"{path}: cannot be read as weights: {error}. Make it again or restore it.")


def write_encoder(out: Path, tensors: Mapping[str, NDArray[Any]], card: EncoderCard) -> Path:
    """Write tensors as fp32, then the card, whose presence says that the pair is complete."""
    contiguous = {key: np.ascontiguousarray(array, dtype=np.float32) for key, array in tensors.items()}
    with atomically(out / ENCODER) as temporary:
        save_file(contiguous, temporary)
    write_atomically(card_path(out / ENCODER), card.model_dump_json(by_alias=True, indent=1) + "\n")
    return out / ENCODER


def card_path(encoder: Path) -> Path:
    """The card of an encoder file: the same name with .json."""
    return encoder.with_suffix(".json")


def read_card(encoder: Path) -> EncoderCard:
    """The card beside an encoder file.

    Raises:
        UserError: naming the card when it is missing or not one.

    """
    path = card_path(encoder)
    try:
        return EncoderCard.model_validate_json(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: the card of {encoder.name} cannot be read: {error.strerror}; "
            "`dseq-jepa export` and `dseq-jepa import` write both."
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: not an encoder's card: {where}: {first['msg']}; export or import it again.") from None


def load_encoder(path: Path, *, checkpointing: bool = False, drop_path: float = 0.0) -> "VisionTransformer":
    """An exported or imported encoder as our ViT in evaluation mode, with the positions of the file.

    Args:
        path: encoder.safetensors; its card lies beside it.
        checkpointing: recompute activations when it is trained.
        drop_path: stochastic depth of the last block when it is trained.

    Raises:
        UserError: listing every key or shape that does not fit.

    """
    from safetensors.torch import load_file

    from dseq_jepa.models.vit import VisionTransformer

    card = read_card(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from None
    refuse_mismatches(
        str(path), {key: tuple(tensor.shape) for key, tensor in tensors.items()},
        encoder_shapes(card.architecture, card.class_token),
    )  # fmt: skip
    encoder = VisionTransformer(card.architecture, card.class_token, checkpointing=checkpointing, drop_path=drop_path)
    position_1LD = tensors.pop("pos_embed")
    if card.class_token:
        # Our ViT keeps no position for the class token: what an imported one learned is part of the token.
        tensors["cls_token"] = tensors["cls_token"] + position_1LD[:, :1]
        position_1LD = position_1LD[:, 1:]
    encoder.load_state_dict(tensors, strict=True)
    encoder.pos_embed.copy_(position_1LD)
    return encoder.eval().requires_grad_(False)
