"""The `tqindex` command."""

import logging
import os
import signal
import sys
from typing import Any

from tqindex.errors import TQIndexError

INTERRUPTED = 130
_TERMINATED = 143


def main() -> None:
    """Run the command; errors are one line on stderr and exit code 2, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminate)
    interruptible = signal.getsignal(signal.SIGINT) == signal.default_int_handler  # a background job may not be
    if interruptible:
        signal.signal(signal.SIGINT, _leave)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")  # modules warn while they load
    try:
        from tqindex.cli.command import run

        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run()
    except TQIndexError as error:  # TQINDEX_SIMD, which modules read when they load
        sys.stderr.write(f"Error: {error}\n")
        code = 2
    if code == INTERRUPTED:
        _leave()
    sys.exit(code)


def _leave(*_: Any) -> None:
    """End at once after Ctrl-C: an exception may be lost while modules load, and a tidy exit takes a while."""
    sys.stderr.write("Interrupted: nothing half-written is left.\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _terminate(*_: Any) -> None:
    """Leave by way of every clean-up, as Ctrl-C does."""
    sys.exit(_TERMINATED)
