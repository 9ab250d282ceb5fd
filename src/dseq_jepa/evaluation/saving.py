"""How often a long evaluation saves its state: the longest work that a kill without warning can cost.

Apart from the loops, for `launch` compares it with the time limit and waits for days without torch in its memory.
"""

TUNING_SECONDS = 600.0
"""Fine-tuning, detection and segmentation."""
PROBE_SECONDS = 180.0
"""Probes; they save after an epoch."""
