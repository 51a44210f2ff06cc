"""The decorator of every kernel: compiled on first call, without the GIL, kept on disk.

Numba's own cache sits beside the source, misses a change in another file that a kernel calls, and its entries are
pickles. Ours is a private folder, named by a hash of all kernel sources and the versions of Numba and llvmlite, and by
the SIMD level; an entry's name tells the CPU, its content is checked. Where no such folder can be had, or it cannot be
written, kernels are compiled in memory in every process, and the log says so.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import numba
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.runtime import nrt
from numba.core.serialize import dumps

from tqindex.kernels.cpu import simd_level

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CompileResult: Any = CompileResult  # untyped in Numba
_dumps: Any = dumps
_rtsys: Any = nrt.rtsys
_log = logging.getLogger("tqindex")
_njit: Any = numba.njit  # its type knows nothing of _nrt
_DIGEST_BYTES = hashlib.sha256().digest_size


def kernel(function: _Function) -> _Function:
    """Compile `function` in nopython mode, without fastmath, so that arithmetic stays as it is written."""
    dispatcher: Any = _njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)(function)
    folder = cache_folder()
    if hasattr(dispatcher, "_cache") and folder is not None:  # no such attribute under NUMBA_DISABLE_JIT
        # What Numba's cache=True does, with our folder.
        dispatcher._cache = _KernelCache(function, folder)
    return cast(_Function, dispatcher)


class _PartLibrary(JITCodeLibrary):
    """Code that is linked into kernels as it was lowered, and optimised and compiled there only.

    Numba would do both for each part too, and again in all that call it: half of the time that kernels take.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _PartCompiler(Compiler):
    """Numba's compiler, with the library above and without an entry for calls from Python."""

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        # The context is this compilation's own. Callers look a part up by its entry, which has to be some builtin
        # function: one of its own, that refuses arguments.
        state.targetctx.get_executable = lambda *_: object().__sizeof__
        return super().define_pipelines()


def _part(**options: bool) -> Callable[[_Function], _Function]:
    """Return a decorator of what only kernels call."""
    return cast(
        Callable[[_Function], _Function],
        _njit(
            nogil=True,
            error_model="numpy",
            # Without reference counts: one count costs as much as a row's work.
            _nrt=False,
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
            pipeline_class=_PartCompiler,
            **options,
        ),
    )


def inner_kernel(function: _Function) -> _Function:
    """Compile a part of kernels that allocates nothing, to be inlined into its callers."""
    return _part(forceinline=True)(function)


def called_kernel(function: _Function) -> _Function:
    """The same for a long part that is called for many rows at once: not inlined wherever it is called."""
    return _part()(function)


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


class _KernelCache:
    """One file per compiled signature and CPU: the SHA-256 of a pickle, and the pickle.

    What Numba asks of a cache, for one kernel. Its own runs whatever a crash or a disk made of its files, and keeps
    an index that is overwritten when two processes compile at once.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        self.cache_path = str(folder)
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return what was saved, None where there is nothing or nothing that can be used."""
        # What machine code needs; Numba's context.refresh() would load what compiling needs, for some 0.2 s.
        _rtsys.initialize(context)
        path = self._path(signature, context.codegen())
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn_once(f"kept kernels are compiled again: cannot read from {self.cache_path} ({error.strerror})")
            return None
        if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
            _log.warning("a kept kernel is damaged and compiled again: %s", path)
            return None
        return _CompileResult._rebuild(context, *pickle.loads(content[_DIGEST_BYTES:]))

    def save_overload(self, signature: Any, result: Any) -> None:
        """Write an entry if that is possible; other processes see all of it or nothing."""
        if result.library.has_dynamic_globals:  # addresses of this process
            return
        try:
            reduced = result._reduce()
        except RuntimeError as error:
            # LLVM hands the machine code over in a callback, from which no exception comes through, Ctrl-C neither.
            raise KeyboardInterrupt from error
        path, content = self._path(signature, result.codegen), _dumps(reduced)
        draft = path.with_suffix(f".{secrets.token_hex(8)}")
        try:
            draft.write_bytes(hashlib.sha256(content).digest() + content)
            draft.replace(path)
        except OSError as error:
            _warn_once(f"compiled kernels are not kept: cannot write to {self.cache_path} ({error.strerror})")
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _path(self, signature: Any, codegen: Any) -> Path:
        key = repr((sys.implementation.cache_tag, signature, codegen.magic_tuple()))  # the last: CPU and its features
        return Path(self.cache_path, f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernel")


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
