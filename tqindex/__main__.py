"""The `tqindex` command as `python -m tqindex`."""

from tqindex.cli import main

main()
