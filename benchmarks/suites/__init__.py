"""Suites: what is measured, one module and one TOML file each."""

from tqindex.bench.suites.base import Suite
from tqindex.bench.suites.distortion import Distortion
from tqindex.bench.suites.indexing import Indexing
from tqindex.bench.suites.recall import Recall
from tqindex.bench.suites.scale import Scale
from tqindex.bench.suites.search import Search
from tqindex.bench.suites.threads import Threads

SUITES: dict[str, Suite] = {
    suite.name: suite for suite in (Recall(), Indexing(), Search(), Scale(), Distortion(), Threads())
}
