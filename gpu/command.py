"""What the commands of this folder share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqindex.errors import TQIndexError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Tell an error that tqindex raises on purpose on stderr, without a traceback, and end with exit code 2."""
    try:
        yield
    except TQIndexError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from error
