"""Golden hashes of codes: sha256 over packed codes and side numbers, for a fixed input.

    python tests/golden/make.py            prints the hashes of the codec and compares the kernels with them
    python tests/golden/make.py --write    writes them to codes.json, after a deliberate change of the format

The input is made from the format's own random stream, so that no NumPy distribution enters.
"""

import argparse
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tqindex.codec import Codec
from tqindex.codec.packing import repack_planes
from tqindex.codec.random import RandomStream
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.rows import EncodedRows

STORE = Path(__file__).with_name("codes.json")
ROWS = 40
_KINDS = [("mse", "orthogonal", bits) for bits in (1, 2, 3, 4, 8)] + [
    ("prod", sketch, bits) for sketch in ("orthogonal", "gaussian") for bits in (2, 3, 4)
]
_FORMS = [("hadamard", 33), ("hadamard", 64), ("hadamard", 100), ("dense", 7), ("dense", 33), ("dense", 64)]
_SEARCHED = [("mse", 2), ("mse", 3), ("mse", 4), ("prod", 3), ("prod", 4)]
_TRELLIS = [("trellis", bits) for bits in (2, 3, 4)]
#: Metric, and whether there is a centre.
_SIDES = [("ip", False), ("cosine", True), ("l2", False)]


def cases() -> Iterator[tuple[str, Codec, str]]:
    """Yield name, codec and metric of every hash."""
    for (rotation, dim), (kind, sketch, bits), (metric, centred) in itertools.product(_FORMS, _KINDS, _SIDES):
        yield _case(rotation, dim, kind, sketch, bits, metric, centred)
    for kind, bits in (("mse", 2), ("mse", 4), ("mse", 8), ("prod", 3)):
        yield _case("hadamard", 1536, kind, "orthogonal", bits, "cosine", True)
    for (rotation, dim), (kind, bits) in itertools.product(_FORMS, _SEARCHED):
        yield _case(rotation, dim, kind, "orthogonal", bits, "cosine", True, "search")
    yield _case("hadamard", 1536, "mse", "orthogonal", 4, "cosine", True, "search")
    for (rotation, dim), (kind, bits), (metric, centred) in itertools.product(_FORMS, _TRELLIS, _SIDES):
        yield _case(rotation, dim, kind, "orthogonal", bits, metric, centred)
    for kind, bits in _TRELLIS:
        yield _case("hadamard", 1536, kind, "orthogonal", bits, "cosine", True)


def _case(
    rotation: Any, dim: int, kind: Any, sketch: Any, bits: int, metric: str, centred: bool, effort: Any = "plain"
) -> tuple[str, Codec, str]:
    center = RandomStream(9, 9).gaussians(dim) / 8.0 if centred else None
    codec = Codec(dim, bits, kind, sketch, center=center, rotation=rotation, seed=20_250_428, effort=effort)
    name = f"{rotation} d={dim} {kind}{bits} {sketch if kind == 'prod' else ''} {metric} centred={centred}"
    name += f" {effort}" if effort != "plain" else ""
    return " ".join(name.split()), codec, metric


def input_rows(dim: int) -> Any:
    """Return the rows that are encoded, float32 (ROWS, dim)."""
    rows = RandomStream(1234, dim).gaussians(ROWS * dim).reshape(ROWS, dim).astype(np.float32)
    rows[1] = 1.0
    rows[2, 1:] = 0.0
    return rows


def oracle_hash(codec: Codec, metric: str) -> str:
    """Return the hash of what `Codec.encode` gives."""
    codes = codec.encode(input_rows(codec.dim), metric)
    return _digest([codes.packed, codes.scales, codes.sketch_scales, codes.offsets])


def kernel_hash(codec: Codec, metric: str) -> str:
    """Return the hash of what the kernels give."""
    rows = input_rows(codec.dim)
    out = EncodedRows.allocate(codec, metric, len(rows))
    encode_rows(codec, rows, metric, out, 2)
    packed = repack_planes(out.planes, codec.dim, codec.bits)
    return _digest([packed, out.scales, out.sketch_scales, out.offsets])


def _digest(arrays: list[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None and array.size:
            digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def main() -> None:
    """Print or write the hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write codes.json")
    hashes = {}
    write = parser.parse_args().write
    for name, codec, metric in cases():
        hashes[name] = oracle_hash(codec, metric)
        if hashes[name] != kernel_hash(codec, metric):
            raise SystemExit(f"kernels and codec differ: {name}")
    text = json.dumps(hashes, indent=1) + "\n"
    if write:
        STORE.write_text(text)
    else:
        print(text, end="")  # noqa: T201


if __name__ == "__main__":
    main()
