"""The `tqindex` command."""

import logging
import signal
import sys
from typing import Any

from tqindex.errors import TQIndexError

_TERMINATED = 143


def main() -> None:
    """Run the command; errors are one line on stderr and exit code 2, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminate)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")  # modules warn while they load
    try:
        from tqindex.cli.command import run

        code = run()
    except KeyboardInterrupt:  # while modules load, which takes a moment
        code = 130
    except TQIndexError as error:  # TQINDEX_SIMD, which modules read when they load
        sys.stderr.write(f"Error: {error}\n")
        code = 2
    sys.exit(code)


def _terminate(*_: Any) -> None:
    """Leave by way of every clean-up, as Ctrl-C does."""
    sys.exit(_TERMINATED)
