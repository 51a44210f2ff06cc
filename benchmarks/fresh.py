"""How long a fresh process takes to its first answer: `python -m tqindex.bench.fresh`.

It loads an index of 100,000 x 100 random vectors and answers one query, as a user's process does; the first one ever
compiles the kernels, the later ones find them. Needs no data.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

import tqindex as tq
from tqindex.bench.timing import spread, timed

_ANSWER = "import sys, numpy as np, tqindex as tq; tq.load(sys.argv[1]).search(np.load(sys.argv[2]))"


@click.command()
@click.option("--repeats", default=5, show_default=True)
def main(repeats: int) -> None:
    """Print the seconds of the first process ever and of later ones."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path, query = Path(folder) / "index.tq", Path(folder) / "query.npy"
        index = tq.Index(100, 4, "ip")
        index.add(rng.standard_normal((100_000, 100), dtype=np.float32))
        index.save(path)
        np.save(query, rng.standard_normal(100, dtype=np.float32))
        command = [sys.executable, "-c", _ANSWER, str(path), str(query)]
        environment = {**os.environ, "TQINDEX_CACHE_DIR": str(Path(folder) / "cache")}

        def answer() -> None:
            subprocess.run(command, check=True, env=environment)

        first = timed(answer)
        later = spread(timed(answer) for _ in range(repeats))
    print(f"first run ever, kernels compiled: {first:.1f} s")
    print(f"later runs: {later['median']:.2f} s ({later['low']:.2f}-{later['high']:.2f})")


if __name__ == "__main__":
    main()
