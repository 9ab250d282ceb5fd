"""The command line: one verb per step of the pipeline.

    dseq-jepa --help
    dseq-jepa pretrain --config configs/demo.yaml --method dseq-jepa --out out/

Each file of verbs beside this one has its own part of the application. Nothing heavy is imported before a verb runs.
"""

import sys

import typer

from dseq_jepa.cli import cluster, data, encoders, evaluations, pages, watching
from dseq_jepa.errors import INTERRUPTED_CODE, StoppedError, UserError

app = typer.Typer(
    help="DSeq-JEPA: pre-train, select, export, evaluate, and fill the paper's tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for part in (encoders, evaluations, pages, watching, cluster):
    app.add_typer(part.verbs)
app.add_typer(data.verbs, name="data")


def main() -> None:
    """Run a verb. A mistake that a person can put right ends with its sentence, anything else with a traceback."""
    try:
        app()
    except StoppedError as stopped:
        sys.stderr.write(f"{stopped}\n")
        sys.exit(INTERRUPTED_CODE)
    except UserError as error:
        sys.exit(f"error: {error}")
