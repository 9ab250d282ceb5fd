"""Tell somebody that a workflow ended, well or not, or that a launched job failed: $DSEQ_NOTIFY is a shell command.

    export DSEQ_NOTIFY='echo "$DSEQ_EVENT" | mail -s "$DSEQ_EVENT" me@example.org'

The command finds what ended, and how, in $DSEQ_EVENT. Whatever it does, the end itself stays.
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
