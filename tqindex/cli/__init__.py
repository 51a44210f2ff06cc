"""The `tqindex` command."""

import signal
import sys
from typing import Any

_TERMINATED = 143


def main() -> None:
    """Run the command; errors are one line on stderr and exit code 2, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from tqindex.cli.command import run

        code = run()
    except KeyboardInterrupt:  # while modules load, which takes a moment
        code = 130
    sys.exit(code)


def _terminate(*_: Any) -> None:
    """Leave by way of every clean-up, as Ctrl-C does."""
    sys.exit(_TERMINATED)
