"""`python -m tqindex.bench` is `tqindex bench`."""

import sys

from tqindex.cli import main

sys.argv.insert(1, "bench")
main()
