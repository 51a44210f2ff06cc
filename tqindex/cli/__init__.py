"""The `tqindex` command."""

import sys


def main() -> None:
    """Run the command; errors are one line on stderr and exit code 2, 130 after Ctrl-C."""
    try:
        from tqindex.cli.command import run

        code = run()
    except KeyboardInterrupt:  # while modules load, which takes a moment
        code = 130
    sys.exit(code)
