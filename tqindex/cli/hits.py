"""Search results as an HDF5 file."""

import os
from pathlib import Path

from tqindex.errors import MissingFileError, StorageError
from tqindex.index import SearchResult
from tqindex.readers.truth import Recall


def check_output(target: Path, force: bool) -> None:
    """Refuse an output that cannot be written, before the search is run."""
    if not target.parent.is_dir():
        raise MissingFileError(f"{target.parent} must be a folder that exists, to write {target.name} into")
    if target.is_dir():
        raise StorageError(f"{target} must be a file, got a directory")
    if target.exists() and not force:
        raise StorageError(f"{target} exists: pass --force to replace it")


def write_hits(target: Path, result: SearchResult, metric: str, recall: Recall) -> None:
    """Write datasets `ids` int64 and `scores` float32, (nq, k), whole or not at all."""
    import h5py

    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file["ids"], file["scores"] = result.ids, result.scores
            file.attrs["metric"], file.attrs["k"] = metric, result.ids.shape[1]
            if recall.value is not None:
                file.attrs["recall"], file.attrs["recall_k"] = recall.value, recall.k
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{target} cannot be written: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
