"""A million points from journals into a new sqlite store: at most three minutes.

    OMP_NUM_THREADS=1 python benchmarks/sync.py            # 1,000,000 points, 20 runs
    python benchmarks/sync.py 100000                       # fewer, for a look

The journals are those of long pre-trainings: 10 metrics at 5,000 steps. The second sync finds every point in its place.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from support.timing import processor, verdict

from dseq_jepa.tracking import sync

METRICS, STEPS = 10, 5_000
CLAIM_MINUTES = 3.0


def write_journals(results: Path, points: int) -> None:
    """Finished pre-trainings with this many points in all."""
    runs = max(1, points // (METRICS * STEPS))
    steps = points // (METRICS * runs)
    for seed in range(runs):
        folder = results / "pretrain" / "dseq-jepa" / "vit-b16" / f"seed{seed}"
        folder.mkdir(parents=True)
        tags = {"step": "pretrain", "method": "dseq-jepa", "architecture": "vit-b16", "seed": str(seed)}
        lines = [{"t": 1000.0, "kind": "run", "tags": tags, "steps": steps}]
        for step in range(1, steps + 1):
            values = {f"metric_{i}": (step * 7919 + i) / 1009 for i in range(METRICS)}
            lines.append({"t": 1000.0 + step, "kind": "metrics", "step": step, "values": values})
        lines.append({"t": 1001.0 + steps, "kind": "event", "name": "finished"})
        (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(f"Points into sqlite, {processor()}")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        write_journals(results, points)
        began = time.monotonic()
        summary = sync(results, "benchmark")
        minutes = (time.monotonic() - began) / 60
        print(f"  {summary.new_points:,} points of {summary.new_runs} runs in {60 * minutes:.1f} s")
        began = time.monotonic()
        again = sync(results, "benchmark")
        print(f"  again, with nothing new: {time.monotonic() - began:.1f} s")
        assert (summary.new_points, again.new_points) == (points, 0)
        if not verdict(f"minutes for {points:,} points", minutes, CLAIM_MINUTES * points / 1_000_000, at_most=True):
            sys.exit(1)


if __name__ == "__main__":
    main()
