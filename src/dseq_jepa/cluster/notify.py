"""Tell somebody that a workflow ended: $DSEQ_NOTIFY, a shell command, is run once at the end, well or not.

    export DSEQ_NOTIFY='echo "$DSEQ_EVENT" | mail -s "$DSEQ_EVENT" me@example.org'

The command finds the experiment and how it ended in $DSEQ_EVENT. Whatever it does, the workflow's own end stays.
"""

import os
import subprocess
import sys

VARIABLE = "DSEQ_NOTIFY"
_PATIENCE = 60


def notify(event: str) -> None:
    """Run the command, if there is one, for a minute at most; a failure is told on stderr."""
    command = os.environ.get(VARIABLE)
    if not command:
        return
    environment = {**os.environ, "DSEQ_EVENT": event}
    try:
        done = subprocess.run(["sh", "-c", command], env=environment, timeout=_PATIENCE, check=False)
        problem = f"ended with status {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"did not end within {_PATIENCE} s"
    if problem:
        sys.stderr.write(f"{VARIABLE}: the command {problem}\n")
