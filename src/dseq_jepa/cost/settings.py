"""How the cost of a pre-training is measured (docs/protocols.md 6, Table 8)."""

from typing import Literal

from pydantic import Field

from dseq_jepa.closed import NAME, Closed


class CostSettings(Closed):
    """Time, memory and multiply-adds of some pre-training steps, spread evenly over the curriculum.

    Values: pretrain_hours (the main one), pretrain_memory_gb, pretrain_gflops, inference_gflops, parameters_m, and
    step_seconds, images_per_second, target_gflops.
    """

    kind: Literal["cost"]
    """What a pre-training costs; needs no encoder."""
    group: str = Field("cost", pattern=NAME)
    """Its job's name; written to evaluate/<group>."""
    data: str
    """Which entry of `data` the batches come from: the one that is pre-trained on."""
    warmup_steps: int = Field(3, ge=1)
    """Steps before any is timed."""
    steps: int = Field(12, ge=1)
    """Timed steps; the median is reported."""
    counted_steps: int = Field(4, ge=1)
    """Further steps, whose multiply-adds are counted; the mean is reported."""
