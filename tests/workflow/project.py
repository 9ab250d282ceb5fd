"""A copy of the workflow in a folder of its own, and Snakemake run in it as a person would."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTHING = "Nothing to be done"


@dataclass(frozen=True)
class Project:
    """A folder with workflow/, configs/ and a configuration to run."""

    folder: Path
    config: Path

    @classmethod
    def at(cls, folder: Path, config: str) -> "Project":
        """Copy the workflow; write the configuration."""
        for part in ("workflow", "configs"):
            shutil.copytree(ROOT / part, folder / part)
        path = folder / "configs" / "test.yaml"
        path.write_text(config)
        return cls(folder, path)

    def command(self, *arguments: str) -> list[str]:
        """The command line; targets come first, for --configfile takes all words that follow it."""
        return [sys.executable, "-m", "snakemake", *arguments, "--cores", "2", "--configfile", str(self.config)]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end; stdout and stderr together."""
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env={**os.environ, **environment}, text=True, timeout=1200,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

    def plan(self, *arguments: str, **environment: str) -> dict[str, int]:
        """How often each rule would run; rules without a command are left out."""
        shown = self.run("--dry-run", *arguments, **environment)
        assert shown.returncode == 0, shown.stdout
        return jobs(shown.stdout)


def jobs(shown: str) -> dict[str, int]:
    """The first "Job stats" table that Snakemake printed, without targets."""
    if NOTHING in shown:
        return {}
    table = re.search(r"Job stats:\n.*\n-.*\n((?:.*\n)*?)total", shown)
    assert table, shown
    counts = {rule: int(count) for rule, count in (line.split() for line in table[1].splitlines())}
    return {rule: count for rule, count in counts.items() if rule not in ("all", "tables", "table1", "table3")}


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """Text with every change made; one that would change nothing is a mistake of the test."""
    for old, new in changes:
        assert old in text, f"nothing to replace: {old}"
        text = text.replace(old, new)
    return text
