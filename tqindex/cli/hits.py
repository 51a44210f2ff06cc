"""Search results as an HDF5 file."""

import io
from pathlib import Path

from tqindex.errors import StorageError
from tqindex.index import SearchResult
from tqindex.readers.truth import Recall
from tqindex.storage.files import check_file_target, storage_errors, write_file


def check_output(target: Path, force: bool) -> None:
    """Refuse an output that cannot be written, before the search is run."""
    check_file_target(target)
    if target.exists() and not force:
        raise StorageError(f"{target} exists: pass --force to replace it")
    if target.exists() and not _is_hits(target):
        raise StorageError(f"{target} exists and does not hold search results: it is left alone")


def _is_hits(path: Path) -> bool:
    """Say whether a file holds what `write_hits` writes, and nothing else."""
    import h5py

    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return set(file) == {"ids", "scores"}


def write_hits(target: Path, result: SearchResult, metric: str, recall: Recall) -> None:
    """Write datasets `ids` int64 and `scores` float32, (nq, k), whole or not at all."""
    import h5py

    # In memory first: of a full disk h5py gives errors of many lines, some of them when it closes the file.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["ids"], file["scores"] = result.ids, result.scores
        file.attrs["metric"], file.attrs["k"] = metric, result.ids.shape[1]
        if recall.value is not None:
            file.attrs["recall"], file.attrs["recall_k"] = recall.value, recall.k
    with storage_errors(target, "written"):
        write_file(target, content.getvalue())
