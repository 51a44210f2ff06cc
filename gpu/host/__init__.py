"""The GPU's kernels on the CPU: the same sources compiled by g++, for tests and for counting.

Nothing in tqindex falls back to it: it is many times slower than the CPU's own kernels.
"""

from tqindex.gpu.host.runtime import HostRuntime

__all__ = ["HostRuntime"]
