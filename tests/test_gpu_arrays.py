"""Arrays that are in device memory come in without a copy through the host, and go out where that is asked for.

They are those of a stand-in for CuPy, as strict as CuPy: they do not become NumPy's by themselves.
"""

from typing import Any

import numpy as np
import pytest
import torch

import tqindex as tq
from tqindex.errors import ArgumentError, DeviceError, VectorError
from tqindex.gpu.engine import run_on
from tqindex.gpu.host import HostRuntime

N, DIM, K = 150, 64, 4


def random_rows(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def pair(**more: Any) -> tuple[tq.Index, tq.Index]:
    """Return an empty index on the CPU and one on the GPU."""
    return tq.Index(DIM, **more), tq.Index(DIM, **more, device="gpu")


def assert_same(found: Any, expected: Any) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is np.ndarray
        np.testing.assert_array_equal(ours, theirs)


def test_arrays_of_the_device_are_taken_without_a_copy_through_the_host(fake_cupy: Any) -> None:
    with fake_cupy() as cupy:
        vectors, queries = random_rows(N), random_rows(10, seed=1)
        here, there = pair()
        here.add(vectors), there.add(cupy.array(vectors))
        assert there.to_bytes() == here.to_bytes()
        on_device = cupy.array(queries)
        there.search(on_device, K)  # sends the codes
        sent = cupy.fake.sent_bytes
        assert_same(there.search(on_device, K), here.search(queries, K))
        assert_same(there.search(on_device[0], K), here.search(queries[0], K))
        assert_same(there.search(on_device[::2], K), here.search(queries[::2], K))
        assert cupy.fake.sent_bytes - sent < queries.nbytes
        assert_same(there.search(on_device, 3, filter=[1, 2, 5]), here.search(queries, 3, filter=[1, 2, 5]))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("library", ["torch", "dlpack"])
def test_other_libraries_arrays_of_host_memory_are_sent(library: str, dtype: str) -> None:
    vectors, queries = random_rows(N).astype(dtype), random_rows(10, seed=1).astype(dtype)

    class ByDlpack:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

    take: Any = torch.from_numpy if library == "torch" else ByDlpack
    with run_on(HostRuntime()):
        here, there = pair()
        here.add(vectors), there.add(take(vectors))
        assert there.to_bytes() == here.to_bytes()
        for of_queries in (queries, queries[:2], queries[::3]):
            assert_same(there.search(take(of_queries), K), here.search(of_queries, K))


def test_other_libraries_arrays_come_by_their_interfaces(fake_cupy: Any) -> None:
    """As torch's, which has both, and one that has DLPack alone."""
    queries = random_rows(10, seed=1)

    class ByInterface:
        @property
        def __cuda_array_interface__(self) -> Any:
            return {**queries.__array_interface__, "version": 3}

    class ByDlpack:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **options: Any) -> Any:
            return queries.__dlpack__(**options)

    with fake_cupy() as cupy:
        here, there = pair()
        here.add(queries), there.add(queries)
        there.search(queries, K)
        sent = cupy.fake.sent_bytes
        for given in (ByInterface(), ByDlpack()):
            assert_same(there.search(given, K), here.search(queries, K))
        assert cupy.fake.sent_bytes - sent < queries.nbytes


def test_dlpack_comes_first_for_it_alone_waits_for_the_owners_stream(fake_cupy: Any) -> None:
    """What torch's interface hands out may not be written yet: here it has not been."""
    queries = random_rows(10, seed=1)

    class Both:
        @property
        def __cuda_array_interface__(self) -> Any:
            return {**np.zeros_like(queries).__array_interface__, "version": 2}

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **options: Any) -> Any:
            return queries.__dlpack__(**options)

    with fake_cupy():
        here, there = pair()
        here.add(queries), there.add(Both())
        assert_same(there.search(Both(), K), here.search(queries, K))


def test_arrays_belong_to_the_index_s_device_whichever_is_current(fake_cupy: Any) -> None:
    rows = random_rows(20)
    with fake_cupy(devices=2) as cupy:
        here, there = tq.Index(DIM, metric="l2"), tq.Index(DIM, metric="l2", device="gpu:1")
        with cupy.cuda.Device(1):
            on_device = cupy.array(rows)
        here.add(rows), there.add(on_device)
        for nq in (2, 20):
            assert_same(there.search(on_device[:nq], K), here.search(rows[:nq], K))
        found = there.search(on_device, K, output="device")
        assert [part.device.id for part in found] == [1, 1]
        elsewhere = cupy.array(rows)
        with cupy.cuda.Device(1), pytest.raises(VectorError, match="index's device cuda:1, got an array on cuda:0"):
            there.search(elsewhere, K)


def test_results_stay_on_the_device_where_that_is_asked_for(fake_cupy: Any) -> None:
    with fake_cupy() as cupy:
        vectors, queries = random_rows(N), random_rows(10, seed=1)
        here, there = pair(metric="l2", originals="float32")
        for index in (here, there):
            index.add(vectors)
        for options in ({}, {"rerank": 20}):
            found = there.search(queries, K, output="device", **options)
            assert all(isinstance(part, cupy.ndarray) for part in found)
            assert_same(map(cupy.asnumpy, found), here.search(queries, K, **options))
            assert_same(here.search(queries, K, output="device", **options), here.search(queries, K, **options))
        with pytest.raises(ArgumentError, match="output must be one of numpy, device; got 'cupy'"):
            there.search(queries, output="cupy")  # type: ignore[arg-type]


def test_arrays_that_cannot_be_taken_are_refused(fake_cupy: Any) -> None:
    class Gradient:
        shape = (3, DIM)

        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")

    with fake_cupy(devices=2) as cupy:
        here, there = pair()
        with cupy.cuda.Device(1):
            elsewhere = cupy.array(random_rows(3))
        with pytest.raises(VectorError, match=r"^vectors must be on the index's device cuda:0, got .* cuda:1$"):
            there.add(elsewhere)
        with pytest.raises(VectorError, match="queries cannot be taken from Gradient: Can't get"):
            there.search(Gradient())
        with pytest.raises(VectorError, match="float16, float32 or float64, got int64"):
            there.add(cupy.array(np.ones((3, DIM), np.int64)))
        with pytest.raises(VectorError, match=r"must have 64 columns \(n, 64\), got shape \(3, 5\)"):
            there.search(cupy.array(random_rows(3, 5)))
        for given in (cupy.array(random_rows(3)), Gradient()):
            with pytest.raises(
                VectorError, match=r"must be in host memory .* on a GPU: copy them, or use index.to\('gpu'\)$"
            ):
                here.search(given)
        assert len(there) == 0
        on_device = cupy.array([1, 2])
        with pytest.raises(ArgumentError, match="ids must be in host memory, got ndarray on a GPU: copy them"):
            there.add(random_rows(2), ids=on_device)
        with pytest.raises(ArgumentError, match="filter must be in host memory, got ndarray on a GPU: copy them"):
            there.search(random_rows(2), filter=on_device)


@pytest.mark.parametrize(
    "error", [TypeError("unsupported"), KeyError("float8"), BufferError("a gradient"), RuntimeError("no"), ValueError()]
)
def test_what_an_owner_does_not_hand_out_is_refused_by_its_name(error: Exception, fake_cupy: Any) -> None:
    class Refusing:
        place = 2, 0

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.place

        def __dlpack__(self, **options: Any) -> Any:
            raise error

    class RefusingHost(Refusing):
        place = 1, 0

    with fake_cupy():
        here, there = pair()
        for index, given in ((there, Refusing()), (there, RefusingHost()), (here, RefusingHost())):
            with pytest.raises(VectorError, match=r"queries cannot be taken from Refusing(Host)?: \S+"):
                index.search(given)


def test_a_device_that_fails_is_not_taken_for_a_wrong_array(fake_cupy: Any) -> None:
    class Failing:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **options: Any) -> Any:
            raise cupy.cuda.CUDARuntimeError(700)

    with fake_cupy() as cupy:
        index = tq.Index(DIM, device="gpu")
        with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
            index.search(Failing())


def test_torch_tensors_that_numpy_cannot_take_are_refused_by_name() -> None:
    index = tq.Index(DIM)
    index.add(random_rows(20))
    wrong = [
        torch.zeros(3, DIM, dtype=torch.bfloat16),
        torch.zeros(3, DIM, requires_grad=True),
        torch.zeros(3, DIM, device="meta"),
        torch.zeros(3, DIM).to_sparse(),
    ]
    for given in wrong:
        with pytest.raises(VectorError, match=r"queries cannot be taken from Tensor: \S+") as caught:
            index.search(given)
        assert "\n" not in str(caught.value)


def test_the_callers_stream_is_waited_for_and_kept(fake_cupy: Any) -> None:
    """It need not be one that waits for the streams that work is done on, nor they for it."""
    with fake_cupy() as cupy:
        index = tq.Index(DIM, device="gpu")
        with cupy.cuda.Stream() as theirs:
            index.add(cupy.array(random_rows(20)))
            del cupy.fake.waits[:]
            index.search(cupy.array(random_rows(9)), K, output="device")
            assert cupy.fake.waits[0] is theirs
            assert cupy.fake.waits[-1] is cupy.cuda.Stream.null
            assert len(set(map(id, cupy.fake.waits))) == 4
            assert cupy.cuda.get_current_stream() is theirs
