"""Suites: what is measured, one module and one TOML file each."""

from tqindex.bench.suites.base import Suite
from tqindex.bench.suites.recall import Recall

SUITES: dict[str, Suite] = {suite.name: suite for suite in (Recall(),)}
