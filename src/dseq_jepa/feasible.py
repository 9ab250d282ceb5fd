"""Entries of a configuration that are sound alone and cannot run together: found before any job starts.

    python -c 'from dseq_jepa.config import load; load("configs/demo.yaml")'  # runs these checks with all others

Names that point at nothing are found elsewhere (`config`) and left out here.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dseq_jepa.figures.settings import methods_of
from dseq_jepa.methods.settings import RegionSettings
from dseq_jepa.models.settings import ArchitectureSettings

if TYPE_CHECKING:
    from dseq_jepa.config import Experiment


def impossible(experiment: "Experiment") -> Iterable[str]:
    """Each combination that contradicts itself: the key to change, and why."""
    yield from _impossible_pairs(experiment)


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
