"""Source text of the kernels, and the options they are compiled with; nothing here touches a device.

A `.cu` file may include `.cuh` files of this folder and nothing else; their text is put in, since NVRTC gets one text.
A header may include none.
"""

import functools
import hashlib
import re
from pathlib import Path

from tqindex.errors import ArgumentError
from tqindex.gpu.runtime import Kernel

_HERE = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(')
#: Codes and scores are defined without contraction to fused multiply-adds (as in `tqindex.codec`).
OPTIONS = ("-std=c++17", "--fmad=false")


@functools.cache
def read_source(name: str) -> str:
    """Return the text of a source file of this folder, or of an absolute path, its headers put in.

    Compilers' messages keep naming the right lines.

    Raises
    ------
    ArgumentError
        The source does not exist.
    """
    path = _HERE / name
    if not path.is_file():
        raise ArgumentError(f"source must be a file, got {path}")
    text = path.read_text()
    for found in reversed(list(_INCLUDE.finditer(text))):
        following = text.count("\n", 0, found.start()) + 2
        header = f'#line 1 "{found[1]}"\n{(_HERE / found[1]).read_text()}\n#line {following} "{name}"'
        text = text[: found.start()] + header + text[found.end() :]
    return f'#line 1 "{name}"\n{text}'


def kernel_names(source: str) -> list[str]:
    """Return the names of the kernels in a source text."""
    return _KERNEL.findall(source)


def define_options(kernel: Kernel) -> tuple[str, ...]:
    """Return the options of a specialisation, alike for NVRTC and g++."""
    return tuple(f"-D{name}={value}" for name, value in kernel.defines)


def hash_sources(folder: Path = _HERE) -> str:
    """Return a hash of the kernels' sources, .cu and .cuh, without comments and spaces."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.cu"), *folder.glob("*.cuh")]):
        code = "".join(line.partition("//")[0] for line in path.read_text().splitlines())
        digest.update((path.name + "".join(code.split())).encode())
    return digest.hexdigest()
