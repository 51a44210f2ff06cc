"""What `Index.info` says."""

from typing import Any

from tqindex.codec import Codec
from tqindex.index.engine import Engine
from tqindex.index.segments import RowSet
from tqindex.kernels.compile import cache_folder
from tqindex.kernels.cpu import simd_level
from tqindex.kernels.threads import available_threads

#: The newest that is read and written; from 1 on, files are read for ever. 2 adds removed rows and originals, 3 codes
#: of kind "trellis".
FORMAT_VERSION = 3


def format_version(codec: Codec, changed: bool) -> int:
    """Return the earliest version that can say what an index holds: older ones of tqindex go on reading the others.

    changed: whether rows are removed, or originals kept.
    """
    if codec.kind == "trellis":
        return 3
    return 2 if changed else 1


def describe(
    codec: Codec, metric: str, rows: RowSet, scan: str, scored: float | None, engine: Engine
) -> dict[str, Any]:
    """Return what `Index.info` does."""
    segments = rows.all_segments()
    n, n_rows = len(rows), rows.n_rows
    code_bytes = sum(segment.n * segment.rows.code_bytes for segment in segments)
    side_bytes = sum(segment.n * segment.rows.side_bytes for segment in segments)
    id_bytes = sum(segment.id_bytes for segment in segments)
    live_bytes = sum(segment.live.nbytes for segment in segments)
    removed_bytes = sum((segment.n - segment.n_live) * segment.row_bytes for segment in segments) + live_bytes
    original_bytes = sum(segment.originals[: segment.n].nbytes for segment in segments)
    total = code_bytes + side_bytes + id_bytes + live_bytes + original_bytes
    folder = cache_folder()
    return {
        "n": n,
        "removed": n_rows - n,
        "dim": codec.dim,
        "metric": metric,
        "bits": codec.bits,
        "codec": codec.kind,
        "sketch": codec.sketch if codec.kind == "prod" else None,
        "scale": codec.scale,
        "centered": codec.center is not None,
        "rotation": codec.rotation,
        "seed": codec.seed,
        "effort": codec.effort,
        "code_bytes": code_bytes,
        "side_bytes": side_bytes,
        "id_bytes": id_bytes,
        "live_bytes": live_bytes,
        "original_bytes": original_bytes,
        "removed_bytes": removed_bytes,
        "total_bytes": total,
        "bytes_per_vector": total / n if n else None,
        "float32_bytes_per_vector": 4 * codec.dim,
        "segments": len(segments),
        "format_version": format_version(codec, n < n_rows or rows.originals is not None),
        "scan": scan,
        "rows_scored": scored,
        "device": engine.device,
        "on_cpu": list(engine.on_cpu),
        "simd": simd_level(),
        "threads": available_threads(),
        "kernel_cache": None if folder is None else str(folder),
    }
