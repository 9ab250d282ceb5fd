"""What the evaluations of a group share: label files read once, pictures seen the same way encoded once.

CLEVR-Count and CLEVR-Distance differ in their labels only, so one pass over the pictures serves both.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.data.catalog import Split, load_split
from dseq_jepa.data.layouts import Part
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.data.staging import staged
from dseq_jepa.data.transforms import TestView
from dseq_jepa.evaluation.features import Collected, FrozenEncoder, collect
from dseq_jepa.evaluation.settings import Features, ProbeSettings
from dseq_jepa.training.distributed import World

_Key = tuple[str, Part, int | None]
"""Data set, split, test_resize: pictures and how they are seen."""


class SharedFeatures:
    """Splits and test-view features, each made at its first use and dropped after its last."""

    def __init__(
        self,
        encoder: FrozenEncoder,
        evaluations: Mapping[str, ProbeSettings],
        data: Mapping[str, DatasetSettings],
        world: World,
        loading: LoadingSettings,
    ) -> None:
        self.encoder, self.world, self.loading = encoder, world, loading
        self.evaluations, self.data = dict(evaluations), data
        self._splits: dict[tuple[str, Part], Split] = {}
        self._collected: dict[_Key, Collected] = {}

    def split(self, name: str, part: Part) -> Split:
        """Pictures and labels of an evaluation."""
        if (name, part) not in self._splits:
            settings = self.evaluations[name]
            self._splits[name, part] = load_split(staged(self.data[settings.data], self.loading), part, settings.target)
        return self._splits[name, part]

    def whole(self, name: str, part: Part) -> Collected:
        """Test-view features of a split: of all kinds that the remaining evaluations of these pictures need."""
        key = self._key(name, part)
        if key not in self._collected:
            kinds: dict[Features, None] = {}
            for other, settings in self.evaluations.items():
                if self._key(other, part) == key and (part == "val" or not settings.augment):
                    kinds |= dict.fromkeys(settings.features)
            self._collected[key] = self._collect(name, part, self.split(name, part).ids, list(kinds))
        return self._collected[key]

    def some(self, name: str, part: Part, ids: NDArray[np.int64]) -> Collected:
        """Test-view features of some pictures of a split, for one evaluation."""
        return self._collect(name, part, ids, self.evaluations[name].features)

    def release(self, name: str) -> None:
        """An evaluation is finished: keep only what others still need."""
        del self.evaluations[name]
        for part in ("train", "val"):
            self._splits.pop((name, part), None)
        needed = {self._key(other, part) for other in self.evaluations for part in ("train", "val")}
        self._collected = {key: value for key, value in self._collected.items() if key in needed}

    def _key(self, name: str, part: Part) -> _Key:
        settings = self.evaluations[name]
        return settings.data, part, settings.test_resize

    def _collect(self, name: str, part: Part, ids: NDArray[np.int64], kinds: list[Features]) -> Collected:
        size = self.encoder.image_size
        view = TestView(size, self.evaluations[name].resize_for(size))
        (collected,) = collect(
            [self.encoder],
            self.split(name, part),
            ids,
            view=view,
            kinds=kinds,
            world=self.world,
            loading=self.loading,
            label=f"{name}: features of {part}",
        )
        return collected.require_finite(self.encoder).require_different(self.encoder)
