"""Building an index from a file of vectors."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from tqindex.checks import as_rows
from tqindex.cli.changes import add_file
from tqindex.codec import Codec
from tqindex.codec.codec import normalise
from tqindex.index import Index
from tqindex.index.engine import open_engine
from tqindex.readers import VectorFile

#: A centre from 32 rows serves as well as one from all (measured); this many leave a margin.
CENTER_ROWS = 4096
_CENTER_BLOCKS = 64


@dataclass(frozen=True)
class Built:
    """A new index and how it was made."""

    index: Index
    center_rows: int
    seconds: float


def build_index(
    vectors: VectorFile, metric: str, centred: bool, parameters: dict[str, Any], threads: int | None, device: str
) -> Built:
    """Encode a whole file; `parameters` are the codec's. The clock starts when the kernels are compiled."""
    # Refuses wrong parameters, and a device that cannot be used, before the file is read.
    open_engine(device, Codec(**parameters))
    center = sample_mean(vectors, metric) if centred else None
    codec = Codec(**parameters, center=center)
    of_metric = cast(Literal["ip", "cosine", "l2"], metric)
    index = Index(codec.dim, metric=of_metric, codec=codec, device=device)
    added = add_file(index, vectors, None, threads, device)
    return Built(index, min(len(vectors), CENTER_ROWS) if centred else 0, added.seconds)


def sample_mean(vectors: VectorFile, metric: str) -> npt.NDArray[np.float32]:
    """Mean of up to 64 contiguous blocks of 64 rows spread over the file; under "cosine" of normalised rows."""
    n, dim = vectors.shape
    total = np.zeros(dim)
    for block in _sample_blocks(n):
        rows = as_rows(vectors[block], dim, "vectors", first_row=block.start)
        if metric == "cosine":
            rows = normalise(rows, "vectors", first_row=block.start)
        total += rows.sum(axis=0, dtype=np.float64)
    return (total / min(n, CENTER_ROWS)).astype(np.float32)


def _sample_blocks(n: int) -> list[slice]:
    if n <= CENTER_ROWS:
        return [slice(0, n)]
    length = CENTER_ROWS // _CENTER_BLOCKS
    starts = [i * (n - length) // (_CENTER_BLOCKS - 1) for i in range(_CENTER_BLOCKS)]
    return [slice(start, start + length) for start in starts]
