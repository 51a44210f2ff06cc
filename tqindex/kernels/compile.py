"""The decorator of every kernel: compiled on first call, without the GIL, kept on disk.

Numba's own cache sits beside the source, misses a change in another file that a kernel calls, and its entries are
pickles. Ours is a private folder, named by a hash of all kernel sources and the versions of Numba and llvmlite, and by
the SIMD level. Where no such folder can be had, kernels are compiled in memory in every process, and the log says so.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from tqindex.kernels.cpu import simd_level

_Function = TypeVar("_Function", bound=Callable[..., Any])
_log = logging.getLogger("tqindex")
_njit: Any = numba.njit  # its type knows nothing of _nrt


def kernel(function: _Function) -> _Function:
    """Compile `function` in nopython mode, without fastmath, so that arithmetic stays as it is written."""
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    if hasattr(dispatcher, "_cache") and cache_folder() is not None:  # no such attribute under NUMBA_DISABLE_JIT
        # What Numba's cache=True does, with our folder.
        dispatcher._cache = cast(Any, _KernelCache)(function)
    return cast(_Function, dispatcher)


def inner_kernel(function: _Function) -> _Function:
    """Compile a part of kernels that allocates nothing, to be inlined into its callers.

    Without reference counts: one count costs as much as a row's work.
    """
    return cast(_Function, _njit(nogil=True, error_model="numpy", forceinline=True, _nrt=False)(function))


def called_kernel(function: _Function) -> _Function:
    """The same for a long part that is called for many rows at once: compiled one time, not once per caller."""
    return cast(_Function, _njit(nogil=True, error_model="numpy", _nrt=False)(function))


@functools.cache
def cache_folder() -> Path | None:
    """Return the folder of compiled kernels, made if need be; None where none is private and writable.

    TQINDEX_CACHE_DIR overrides the place, which is `tqindex` in XDG_CACHE_HOME or ~/.cache.
    """
    base = os.environ.get("TQINDEX_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        root = Path(base) if base else Path(home).expanduser() / "tqindex"
        folder = root / f"kernels-{_source_hash()[:16]}-{simd_level()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        _log.warning("compiled kernels are not kept: no cache folder can be made (%s)", error)
        return None
    if not _is_private(folder):
        _log.warning("compiled kernels are not kept: %s is not private and writable", folder)
        return None
    return folder


def _is_private(folder: Path) -> bool:
    """Entries are pickles: nobody else may write them."""
    if os.name == "posix":
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return False
    return os.access(folder, os.W_OK | os.X_OK)


@functools.cache
def _source_hash() -> str:
    digest = hashlib.sha256(f"numba {numba.__version__} llvmlite {llvmlite.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


class _KernelLocator(_CacheLocator):
    """Points Numba's cache at our folder; the folder's name already tells sources apart."""

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return _source_hash()

    def get_disambiguator(self) -> str:
        return ""

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_KernelLocator":  # noqa: ARG003
        return cls()


class _KernelCacheImpl(CompileResultCacheImpl):
    _locator_classes: list[type[object]] = [_KernelLocator]  # noqa: RUF012 (Numba's own declaration)


class _KernelCache(FunctionCache):
    _impl_class = _KernelCacheImpl
