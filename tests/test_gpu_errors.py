"""A GPU that cannot be used, or fails, is one line that names a remedy, and the index is what it was.

The errors are CuPy 14's own, by name and text, raised by a stand-in for it.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import ArgumentError, DeviceError, TQIndexError
from tqindex.gpu import cuda, is_available, rows
from tqindex.gpu.engine import run_on
from tqindex.gpu.host import HostRuntime
from tqindex.index import segments

N, DIM = 100, 64
VECTORS = np.random.default_rng(0).standard_normal((N, DIM), dtype=np.float32)


def check_message(error: BaseException, *words: str) -> None:
    assert isinstance(error, TQIndexError)
    assert isinstance(error, RuntimeError)
    message = str(error)
    assert "\n" not in message
    for word in words:
        assert word in message


def check_unusable(*words: str, device: str = "gpu") -> None:
    """Whoever asks for the GPU is told why not, and an index that is moved there stays where it is."""
    index = tq.Index(DIM)
    index.add(VECTORS)
    expected = index.search(VECTORS[:10], 5)
    for ask in (lambda: index.to(device), lambda: tq.Index(DIM, device=device)):
        with pytest.raises(DeviceError) as caught:
            ask()
        check_message(caught.value, *words)
    if device == "gpu":
        available = is_available()
        assert not available
        assert available.reason == str(caught.value)
    assert index.device == "cpu"
    for ours, theirs in zip(index.search(VECTORS[:10], 5), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# -- before anything runs


def test_without_cupy_the_package_works_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda.open_device.cache_clear()
    check_unusable("the GPU needs CuPy, which is not installed: pip install 'tqindex[gpu]'", "cupy-cuda13x")


def test_a_broken_cupy_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libcublas.so.12: cannot open\nshared object file")

    monkeypatch.setattr(cuda.importlib, "import_module", fail)
    cuda.open_device.cache_clear()
    check_unusable("CuPy cannot be imported: libcublas.so.12: cannot open shared object file", "pip install")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file or directory", "/nope"), ValueError("nonsense")])
def test_a_cupy_whose_start_fails_is_unusable(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a home that cannot be written to, or a wrong CUPY_ACCELERATORS."""

    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(cuda.importlib, "import_module", fail)
    cuda.open_device.cache_clear()
    check_unusable("CuPy cannot be imported:", str(error), "CUPY_CACHE_DIR")


def test_another_module_of_its_name_is_not_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("cupy")
    other.__path__ = ["/elsewhere/cupy"]  # as of a folder that happens to be there
    monkeypatch.setitem(sys.modules, "cupy", other)
    cuda.open_device.cache_clear()
    check_unusable("is not CuPy but /elsewhere/cupy", "rename that")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"count_error": 35, "driver": 0}, ("cudaErrorInsufficientDriver", "there is no NVIDIA driver: install it")),
        ({"count_error": 35, "driver": 11040}, ("driver is for CUDA 11.4, CuPy for 12.9: update the driver",)),
        ({"count_error": 100}, ("cudaErrorNoDevice", "nvidia-smi", "CUDA_VISIBLE_DEVICES")),
        ({"count_error": 803}, ("cudaErrorSystemDriverMismatch", "driver does not fit", "update it")),
        ({"capability": (7, 0)}, ("gpu:0 must have compute capability 7.5 or more, it has 7.0: use the CPU",)),
        ({"devices": 0}, ("no GPU is visible", "CUDA_VISIBLE_DEVICES")),
    ],
    ids=["no driver", "old driver", "no device", "other driver", "old architecture", "none visible"],
)
def test_what_keeps_a_gpu_from_being_used_is_named(settings: Any, words: tuple[str, ...], fake_cupy: Any) -> None:
    with fake_cupy(**settings):
        check_unusable(*words)


def test_a_device_that_is_not_there_is_named_with_those_that_are(fake_cupy: Any) -> None:
    with fake_cupy(devices=2):
        check_unusable("gpu:0, gpu:1", "got gpu:2", "CUDA_VISIBLE_DEVICES", device="gpu:2")
        for there in (1, "gpu:1", "gpu", "gpu:0"):
            assert is_available(there)
        for absent in (2, "gpu:2"):
            assert not is_available(absent)
        for wrong in ("cpu", "cuda:1", -1, None, [], "gpu:x"):
            with pytest.raises(ArgumentError, match="device must be"):
                is_available(wrong)  # type: ignore[arg-type]


def test_a_dim_without_kernels_is_refused_at_once(fake_cupy: Any) -> None:
    with fake_cupy():
        for ask in (lambda: tq.Index(9000, device="gpu"), lambda: tq.Index(9000).to("gpu")):
            with pytest.raises(ArgumentError, match="dim must be at most 8192 on a GPU, got 9000: use the CPU"):
                ask()


def test_the_driver_may_come_later(fake_cupy: Any) -> None:
    """A refusal is not remembered."""
    with fake_cupy(count_error=35) as cupy:
        assert not is_available()
        cupy.fake.count_error = None
        assert is_available()
        assert tq.Index(DIM, device="gpu").device == "gpu:0"


# -- while something runs


def errors_of(cupy: Any) -> dict[str, tuple[str, Exception, tuple[str, ...]]]:
    """What fails, by what, and the words to be said."""
    cuda = cupy.cuda
    return {
        "memory": (
            "alloc",
            cuda.memory.OutOfMemoryError("Out of memory allocating 1,024 bytes (allocated so far: 2,048 bytes)."),
            ("gpu:0", "Out of memory allocating 1,024 bytes", "use the CPU"),
        ),
        "driver's memory": ("launch", cuda.CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), ("memory",)),
        "sending": ("upload", cuda.CUDARuntimeError(2), ("cudaErrorMemoryAllocation", "memory")),
        "compiler": (
            "compile",
            cuda.compiler.CompileException("a.cu(3): warning #177-D: unused\na.cu(9): error: what is this\n1 error"),
            ("a.cu(9): error: what is this", "a kernel does not compile: update CuPy"),
        ),
        "new architecture": (
            "compile",
            cuda.compiler.CompileException("nvrtc: error: invalid value for --gpu-architecture (-arch)\n"),
            ("newer CuPy",),
        ),
        "architecture": ("compile", cuda.CUDARuntimeError(209), ("architecture", "newer CuPy")),
        "driver": ("compile", cuda.CUDARuntimeError(222), ("driver does not fit", "update")),
        "toolkit": (
            "compile",
            RuntimeError('Failure finding "libnvrtc.so.12": No such file: libnvrtc.so.12\n'),
            ("a library of CUDA is missing", "pip install", "[ctk]"),
        ),
        "busy": ("launch", cuda.CUDARuntimeError(46), ("another process", "nvidia-smi")),
        "kernel": ("download", cuda.CUDARuntimeError(700), ("cudaErrorIllegalAddress", "restart the process")),
        "late kernel": ("synchronize", cuda.CUDARuntimeError(700), ("cudaErrorIllegalAddress", "restart the process")),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "memory", "driver's memory", "sending", "compiler", "new architecture", "architecture", "driver", "toolkit",
        "busy", "kernel", "late kernel",
    ],
)  # fmt: skip
def test_a_failing_device_leaves_the_index_as_it_was(kind: str, fake_cupy: Any) -> None:
    with fake_cupy() as cupy:
        failing, error, words = errors_of(cupy)[kind]
        index = tq.Index(DIM, device="gpu")
        if failing != "compile":
            index.add(VECTORS[:50])
            expected = index.search(VECTORS[:10], 5)
            index.add(VECTORS[50:60], ids=np.arange(100, 110))
        before = index.to_bytes()
        cupy.fake.failing = {failing: error}
        asked: list[Callable[[], Any]] = [
            lambda: index.add(VECTORS[60:]),
            lambda: index.search(VECTORS[:10], 5),
            lambda: index.search(VECTORS[0], 5),
            lambda: index.range_search(VECTORS[:2], 0.0),
        ]
        if failing != "compile":
            asked.append(lambda: index.update([0], VECTORS[:1]))
        for ask in asked:
            with pytest.raises(DeviceError) as caught:
                ask()
            check_message(caught.value, *words)
            assert caught.value.__cause__ is error
            assert index.to_bytes() == before
        cupy.fake.failing = {}
        if failing != "compile":
            index.remove(np.arange(100, 110))
            for ours, theirs in zip(index.search(VECTORS[:10], 5), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        index.add(VECTORS[60:])  # the device may be used again, and so may the CPU
        assert index.to("cpu").search(VECTORS[60], 1).scores[0] > 0.9


@pytest.mark.parametrize("what", ["live bits", "ids"])
def test_a_search_that_is_interrupted_leaves_nothing_stale(what: str, fake_cupy: Any) -> None:
    with fake_cupy() as cupy:
        here, there = tq.Index(DIM), tq.Index(DIM, device="gpu")
        for index in (here, there):
            index.add(VECTORS[:50])
        there.search(VECTORS[:10], 5)
        for index in (here, there):
            if what == "ids":
                index.add(VECTORS[50:60], ids=np.arange(100, 110))
            else:
                index.remove([0, 1, 2])
        # Whatever is sent by the search, the interrupt comes there once.
        expected, number = here.search(VECTORS[:20], 5), 0
        while True:
            cupy.fake.interrupt_after = number
            try:
                found = there.search(VECTORS[:20], 5)
                break
            except KeyboardInterrupt:
                number += 1
        assert number > 2
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_work_is_waited_for_where_a_call_fails_too(fake_cupy: Any) -> None:
    """Memory that its kernels write may be others' right after."""
    with fake_cupy() as cupy:
        index = tq.Index(DIM, device="gpu")
        index.add(VECTORS)
        cupy.fake.failing = {"download": KeyError("not the device's")}
        del cupy.fake.waits[:]
        with pytest.raises(KeyError):
            index.search(VECTORS[:10], 5)
        assert len(set(map(id, cupy.fake.waits))) == 3


def test_codes_beyond_the_pools_limit_are_sent_by_every_search(fake_cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows.DeviceStore.__init__, "__defaults__", (50_000,))
    monkeypatch.setattr(segments, "segment_capacity", lambda codec, metric: 64)
    vectors = np.random.default_rng(1).standard_normal((64 * 40, DIM), dtype=np.float32)
    with fake_cupy() as cupy:
        here = tq.Index(DIM)
        here.add(vectors)
        there = tq.Index.from_bytes(here.to_bytes()).to("gpu")
        cupy.fake.limit = cupy.fake.used_bytes + 100_000
        for _ in range(2):
            for ours, theirs in zip(there.search(vectors[:3], 5), here.search(vectors[:3], 5), strict=True):
                np.testing.assert_array_equal(ours, theirs)
        assert 0 < len(there._engine._store._held) < 40  # type: ignore[attr-defined]


def test_memory_that_ends_is_given_back(fake_cupy: Any) -> None:
    """An index on the device fills its memory; the search that fails gives up what it had sent."""
    with fake_cupy() as cupy:
        index = tq.Index(DIM, device="gpu")
        index.add(VECTORS)
        index.search(VECTORS[:10], 5)
        free, cupy.fake.free_bytes = cupy.fake.free_bytes, 100
        with pytest.raises(DeviceError, match="Out of memory"):
            index.search(VECTORS[:10], 5)
        cupy.fake.free_bytes += free - 100
        assert len(index._engine._store._held) == 0  # type: ignore[attr-defined]
        assert index.search(VECTORS[0], 1).ids[0] == 0


def test_a_device_that_fails_in_the_middle_of_an_add_changes_nothing(
    fake_cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqindex.index import changing

    monkeypatch.setattr(changing, "_BLOCK_BYTES", 16 * 4 * DIM)
    with fake_cupy() as cupy:
        index = tq.Index(DIM, device="gpu")
        index.add(VECTORS[:10])
        before = index.to_bytes()

        def fail(done: int) -> None:
            if done >= 32:
                cupy.fake.failing = {"upload": cupy.cuda.CUDARuntimeError(2)}

        with pytest.raises(DeviceError):
            index.add(VECTORS, progress=fail)
        cupy.fake.failing = {}
        assert index.to_bytes() == before
        index.search(VECTORS[:10], 5)
        index.add(VECTORS[10:])
        whole = tq.Index(DIM)
        whole.add(VECTORS)
        assert index.to_bytes() == whole.to_bytes()
        np.testing.assert_array_equal(index.search(VECTORS[:20], 5).ids, whole.search(VECTORS[:20], 5).ids)


# -- what is not there is not asked for


def test_nothing_of_the_gpu_is_imported_before_it_is_asked_for(run_python: Callable[..., str]) -> None:
    program = (
        "import sys, numpy as np, tqindex as tq; index = tq.Index(8); index.add(np.eye(8)); index.search(np.eye(8), 1);"
        "print([name for name in sys.modules if name.startswith(('tqindex.gpu', 'cupy'))])"
    )
    assert run_python("-c", program).strip() == "[]"


def test_the_host_run_is_never_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda.open_device.cache_clear()
    with run_on(HostRuntime()):
        assert tq.Index(DIM, device="gpu").device == "host"
    with pytest.raises(DeviceError, match="CuPy, which is not installed"):
        tq.Index(DIM, device="gpu")
