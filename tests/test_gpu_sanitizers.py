"""The kernels run clean under AddressSanitizer, UBSan and ThreadSanitizer: every one that an index launches, once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tqindex as tq
from tqindex.gpu.engine import run_on
from tqindex.gpu.host.build import Sanitizer
from tqindex.gpu.host.sanitize import RecordedLaunch, RecordingRuntime
from tqindex.index.search import FEW_QUERIES

#: (dim, bits, codec, metric, rotation, k of searches for many): widths that fill words, and that do not.
INDEXES = [
    (64, 4, "mse", "ip", None, (10, 200)),
    (100, 3, "prod", "l2", None, (40,)),
    (37, 8, "mse", "cosine", "dense", (5,)),
]


@pytest.fixture(scope="module")
def launches() -> list[RecordedLaunch]:
    """One launch of each specialisation that these indexes use, the first."""
    runtime = RecordingRuntime()
    with run_on(runtime):
        for index in INDEXES:
            use_index(*index)
    return list({(launch.name, launch.defines): launch for launch in reversed(runtime.launches)}.values())


def use_index(dim: int, bits: int, codec: str, metric: str, rotation: str | None, results: tuple[int, ...]) -> None:
    rng = np.random.default_rng(dim)
    rows, queries = rng.standard_normal((400, dim), np.float32), rng.standard_normal((FEW_QUERIES + 1, dim), np.float32)
    index = tq.Index(dim, bits=bits, codec=codec, metric=metric, rotation=rotation, device="gpu")
    index.add(rows[:70])
    index.remove(np.arange(0, 40, 3))
    for k in results:
        index.search(queries, k)
    index.add(rows[70:])
    index.search(queries[0], 3)
    index.search(queries[0], 3, exact_scan=True)
    index.search(queries[0], 3, filter=np.arange(100, 300))


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_run_clean(launches: list[RecordedLaunch], sanitizer: Sanitizer) -> None:
    names = {launch.name for launch in launches}
    assert names >= {"encode_rows", "encode_queries", "bound_rows", "score_survivors", "scan_tiles", "select_best"}
    with ThreadPoolExecutor() as pool:
        reports = list(pool.map(lambda launch: launch.run(sanitizer)[0], launches))
    assert [(launch.name, report) for launch, report in zip(launches, reports, strict=True) if report] == []
