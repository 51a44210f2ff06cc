"""A stand-in for CuPy where there is no GPU: arrays of the host, kernels in the host run, and CuPy's own errors.

As strict as CuPy in what the tests rely on: arrays do not become NumPy's by themselves, do not mix with them, belong to
the device that was current when they were made, are worked on while it is current alone, and take memory, of which
there is as much as `fake.free_bytes`, and as the pool's limit allows. What fails is set on `fake`.
"""

import threading
import weakref
from dataclasses import dataclass, field

import numpy as np

from tqindex.gpu.host.build import load_module
from tqindex.gpu.host.call import HostKernel

__version__ = "14.2.0"


@dataclass
class Fake:
    """What there is, and what fails.

    Attributes
    ----------
    count_error : a status of the runtime that every question for devices ends with
    failing : name of a function, and the error that it raises
    launches : (kernel, device) of every start of a kernel
    waits : streams that were waited for
    sent_bytes : of all copies from the host
    limit, used_bytes : of the pool; a limit of 0 is none
    interrupt_after : so many copies from the host are made, and one more raises KeyboardInterrupt
    """

    devices: int = 1
    capability: tuple[int, int] = (8, 0)
    driver: int = 12090
    count_error: int | None = None
    failing: dict = field(default_factory=dict)
    free_bytes: int = 2**40
    launches: list = field(default_factory=list)
    waits: list = field(default_factory=list)
    sent_bytes: int = 0
    limit: int = 0
    used_bytes: int = 0
    interrupt_after: int | None = None


fake = Fake()
_here = threading.local()


def _current():
    return getattr(_here, "device", 0)


def _fail(name):
    if name in fake.failing:
        raise fake.failing[name]


class ndarray:  # noqa: N801
    """CuPy's array, with what the tests need of it."""

    def __init__(self, array, owner=None):
        self._array, self._owner = array, owner
        self.device = owner.device if owner is not None else cuda.Device(_current())

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    @property
    def __cuda_array_interface__(self):
        return {**self._array.__array_interface__, "version": 3}

    def __dlpack_device__(self):
        return 2, self.device.id

    def __getattr__(self, name):
        if name.startswith("__") or name == "_array":
            raise AttributeError(name)
        found = getattr(self._array, name)
        if not callable(found):
            return found
        return lambda *args, **options: _wrap(found(*map(_plain, args), **options), self)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (_wrap(part, self) for part in self._array)

    def __getitem__(self, place):
        return _wrap(self._array[_plain(place)], self)

    def __setitem__(self, place, value):
        self._array[_plain(place)] = _plain(value)

    def __bool__(self):
        return bool(self._array)

    def __int__(self):
        return int(self._array)

    __index__ = __int__

    def __float__(self):
        return float(self._array)


def _operator(name):
    def apply(self, *others):
        for array in (self, *others):
            if isinstance(array, ndarray) and array.device.id != _current():
                raise ValueError(f"Peer access is unavailable between the current device and {array.device.id}")
        found = getattr(self._array, name)(*map(_plain, others))
        return self if found is self._array else _wrap(found)

    return apply


for _name in ("add", "sub", "mul", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "neg", "invert"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("add", "sub", "mul", "and", "or"):
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(ndarray, f"__i{_name}__", _operator(f"__i{_name}__"))


def _plain(value):
    """Take the host's array out of ours; NumPy's are refused, as CuPy does."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return value


def _wrap(value, owner=None):
    """Make what NumPy returned ours; memory is taken where it is not another array's."""
    if isinstance(value, tuple | list):
        return type(value)(_wrap(part) for part in value)
    if isinstance(value, np.generic):
        value = np.array(value)
    if not isinstance(value, np.ndarray):
        return value
    if owner is not None and value.base is not None:
        return ndarray(value, owner)
    _take(value.nbytes)
    made = ndarray(value)
    weakref.finalize(value, _give, value.nbytes)
    return made


def _take(nbytes):
    _fail("alloc")
    if nbytes > fake.free_bytes or (fake.limit and fake.used_bytes + nbytes > fake.limit):
        raise cuda.memory.OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes (allocated so far: 0 bytes).")
    fake.free_bytes -= nbytes
    fake.used_bytes += nbytes


def _give(nbytes):
    fake.free_bytes += nbytes
    fake.used_bytes -= nbytes


def __getattr__(name):
    function = getattr(np, name)
    if not callable(function) or isinstance(function, type):
        return function
    return lambda *args, **options: _wrap(
        function(*map(_plain, args), **{key: _plain(value) for key, value in options.items()})
    )


def array(given, dtype=None, order="K"):
    """Copy, from the host too."""
    if isinstance(given, ndarray):
        return _wrap(np.array(given._array, dtype, order=order))
    _fail("upload")
    if fake.interrupt_after is not None:
        if not fake.interrupt_after:
            fake.interrupt_after = None
            raise KeyboardInterrupt
        fake.interrupt_after -= 1
    copy = np.array(given, dtype, order=order)
    fake.sent_bytes += copy.nbytes
    return _wrap(copy)


def asarray(given):
    """Take arrays of the device as they are, and copy those of other devices to it."""
    if isinstance(given, ndarray):
        return given if given.device.id == _current() else _wrap(np.array(given._array))
    if not hasattr(given, "__cuda_array_interface__"):
        return array(given)

    class Holder:
        __array_interface__ = given.__cuda_array_interface__
        keeps = given

    taken = ndarray(np.asarray(Holder()))
    taken.device = cuda.Device(getattr(given, "device_number", 0))
    return taken


def from_dlpack(given):
    """Take arrays of the device as they are."""
    taken = ndarray(np.from_dlpack(given))
    taken.device = cuda.Device(given.__dlpack_device__()[1])
    return taken


def asnumpy(given):
    """Copy to the host."""
    _fail("download")
    return np.array(given._array)


def get_default_memory_pool():
    """Return a pool that keeps nothing."""
    return _Pool()


class _Pool:
    def free_bytes(self):
        return 0

    def get_limit(self):
        return fake.limit

    def used_bytes(self):
        return fake.used_bytes


class RawModule:
    """Kernels in the host run."""

    def __init__(self, code, options=()):
        self._code, self._defines = code, tuple(option for option in options if option.startswith("-D"))

    def get_function(self, name):
        """Compile and return a kernel."""
        _fail("compile")
        kernel = HostKernel(load_module(self._code, self._defines), name)

        def launch(grid, block, args, shared_mem=0):
            _fail("launch")
            for arg in args:
                if isinstance(arg, np.ndarray):
                    raise TypeError(f"Unsupported type {type(arg)}")
                if isinstance(arg, ndarray) and arg.device.id != _current():
                    raise ValueError(f"Array device must be same as the current device: {arg.device.id}")
            fake.launches.append((name, _current()))
            kernel(grid, block, [_plain(arg) for arg in args], shared_mem)

        return launch


from cupy import cuda  # noqa: E402
