"""The `tqindex` command."""

import sys


def main() -> None:
    """Run the command; errors are one line on stderr and exit code 2."""
    from tqindex.cli.command import run

    sys.exit(run())
