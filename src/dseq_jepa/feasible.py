"""Entries of a configuration that are sound alone and cannot run together: found before any job starts.

    python -c 'from dseq_jepa.config import load; load("configs/demo.yaml")'  # runs these checks with all others

Names that point at nothing are found elsewhere (`config`) and left out here.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dseq_jepa.cost.settings import CostSettings
from dseq_jepa.evaluation.settings import (
    BLOCKS_OF_LAST4,
    DetectionSettings,
    EvaluationSettings,
    FinetuneSettings,
    ProbeSettings,
    SegmentationSettings,
)
from dseq_jepa.figures.settings import methods_of
from dseq_jepa.methods.settings import RegionSettings
from dseq_jepa.models.settings import ArchitectureSettings

if TYPE_CHECKING:
    from dseq_jepa.config import Experiment


def impossible(experiment: "Experiment") -> Iterable[str]:
    """Each combination that contradicts itself: the key to change, and why."""
    yield from _impossible_pairs(experiment)
    yield from _unequal_shares(experiment)
    yield from _unfit_encoders(experiment)


def _unequal_shares(experiment: "Experiment") -> Iterable[str]:
    """Batches that the configured ranks cannot share equally, or whose shares cannot be cut as they should be."""
    ranks = experiment.compute.ranks
    for name, recipe in experiment.recipes.items():
        where = f"recipes.{name}"
        yield from _unequal(where, "accumulation", recipe.accumulation, recipe.batch_size, ranks)
    for name, evaluation in experiment.evaluations.items():
        where = f"evaluations.{name}"
        if isinstance(evaluation, FinetuneSettings):
            for architecture in (None, *evaluation.architectures):
                settings = evaluation.on(architecture) if architecture else evaluation
                place = f"{where}.architectures.{architecture}" if architecture else where
                group = settings.mixing_group if settings.mixes else 1
                yield from _unequal(place, "mixing_group", group, settings.batch_size, ranks)
        elif not isinstance(evaluation, CostSettings):
            yield from _unequal(where, "batch_size", 1, evaluation.batch_size, ranks)


def _unequal(where: str, key: str, divisor: int, batch_size: int, ranks: int) -> Iterable[str]:
    if batch_size % ranks:
        yield f"{where}.batch_size: {batch_size} cannot be shared equally by {ranks} ranks (compute.ranks)"
    elif batch_size // ranks % divisor:
        yield (
            f"{where}.{key}: {divisor} does not divide a rank's {batch_size // ranks} images: batch_size is "
            f"{batch_size} and compute.ranks {ranks}"
        )


def _unfit_encoders(experiment: "Experiment") -> Iterable[str]:
    """Evaluations of architectures that tables ask for, but whose depth or patch does not fit."""
    measured = {
        (name, row.architecture)
        for table in experiment.tables.values()
        for column in table.columns
        if column.evaluation in experiment.evaluations
        for name in experiment.groups[experiment.group_of(column.evaluation)]
        for row in table.rows
        if row.architecture in experiment.architectures
    }
    for name, architecture in sorted(measured, key=str):
        for key, problem in _misfits(experiment.evaluations[name], experiment.architectures[str(architecture)]):
            yield f"evaluations.{name}.{key}: {problem} of {architecture}"


def _misfits(evaluation: EvaluationSettings, architecture: ArchitectureSettings) -> Iterable[tuple[str, str]]:
    patch = architecture.patch_size
    match evaluation:
        case ProbeSettings() if "last4" in evaluation.features and architecture.depth < BLOCKS_OF_LAST4:
            yield "features", f"last4 needs {BLOCKS_OF_LAST4} blocks and cannot be read from the {architecture.depth}"
        case SegmentationSettings() if evaluation.crop_size % patch:
            yield "crop_size", f"{evaluation.crop_size} is not a multiple of the {patch} px patches"
        case DetectionSettings() if patch % 4:
            yield "kind", f"the pyramid needs patches of 4, 8, 12, ... px and cannot be built on the {patch} px patches"
        case DetectionSettings() if evaluation.image_size % (2 * patch):
            yield "image_size", f"{evaluation.image_size} is not a multiple of two {patch} px patches"


def _impossible_pairs(experiment: "Experiment") -> Iterable[str]:
    """A method on an architecture that a table or figure asks for."""
    used = {
        (row.method, row.architecture)
        for table in experiment.tables.values()
        for row in table.rows
        if row.method in experiment.methods and row.architecture in experiment.architectures
    }
    for figure in experiment.figures.values():
        if figure.architecture in experiment.architectures:
            used |= {(name, figure.architecture) for name in methods_of(figure) if name in experiment.methods}
    for method_name, architecture_name in sorted(used, key=str):
        method, architecture = experiment.methods[str(method_name)], experiment.architectures[str(architecture_name)]
        hidden = round(method.blocks.targets * method.blocks.target_scale[1] * architecture.patches)
        if architecture.patches - hidden < method.blocks.min_context:
            yield (
                f"methods.{method_name}.blocks.min_context: {method.blocks.min_context} visible patches cannot be kept "
                f"on {architecture_name}: {method.blocks.targets} targets can hide {hidden} of {architecture.patches}"
            )
        if method.generation == "discriminative":
            yield from _impossible_regions(
                f"methods.{method_name}.regions", method.regions, architecture_name, architecture
            )
        recipe = experiment.recipes.get(architecture.recipe)
        if recipe and method.contrastive and recipe.accumulation > 1:
            yield (
                f"recipes.{architecture.recipe}.accumulation: {method_name} is contrastive, and its statistics are "
                "over the whole batch; set accumulation: 1 or use more ranks"
            )


def _impossible_regions(
    where: str, regions: RegionSettings, name: str, architecture: ArchitectureSettings
) -> Iterable[str]:
    """Regions that no saliency map of an architecture could have."""
    grid, most = architecture.grid, regions.most_components(architecture.grid)
    sizes = f"{regions.min_patches} patches or more"
    if (regions.min_region_scale, regions.max_region_scale) != (0, 1):
        sizes += f" and {regions.min_region_scale} to {regions.max_region_scale} of the image"
    if not most:
        yield (
            f"{where}: no component of {name}'s {grid} x {grid} patches can have {sizes} beside some background; no "
            "region could ever be found"
        )
    elif regions.count - 1 > most:
        yield (
            f"{where}.count: N is {regions.count}, but {name}'s {grid} x {grid} patches have room for at most {most} "
            f"separate components of {sizes}: with the remainder N is at most {most + 1}"
        )
