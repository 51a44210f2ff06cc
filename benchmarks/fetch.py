"""Download files so that a broken transfer resumes, check them, and read vectors from parquet columns.

`datasets/fetch.py` is the command over this module. Nothing here prints: progress goes to a callback.
"""

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from tqindex.bench.exact import METRICS, exact_neighbors
from tqindex.errors import FileFormatError, TQIndexError

# Called with the bytes of the file that are here and, where the server says, the bytes of the whole.
Progress = Callable[[int, int | None], None]
# Raises a TQIndexError where a complete file is not what it should be.
Check = Callable[[Path], None]

BLOCK = 1 << 20  # bytes read from the network at a time, at most
BATCH_ROWS = 1024  # parquet rows decoded at a time
TIMEOUT = 60.0  # seconds without a byte from the server
# The firewall before ann-benchmarks.com refuses the name that urllib gives itself.
USER_AGENT = "Mozilla/5.0 (compatible; tqindex-fetch)"
# Published distances are float32 and computed by others in float32.
DISTANCE_TOLERANCE = 1e-4


class DownloadError(TQIndexError, OSError):
    """A file did not arrive whole, or is not the file that was announced."""


def download(url: str, target: Path, check: Check, progress: Progress) -> None:
    """Fetch `url` to `target`, which appears only when it is complete and `check` has passed.

    Bytes go to `target` + ".part", kept when the transfer breaks: the next call asks for the rest only,
    provided that the server's file is still the same (If-Range). A complete file that fails its check is
    renamed to `target` + ".rejected".

    Raises
    ------
    DownloadError
        The server cannot be reached, refuses, or closes before the end; or `check` says so.
    TQIndexError
        Whatever else `check` raises.
    """
    part = _beside(target, ".part")
    validator = _beside(target, ".part.validator")
    with _network_errors(url):
        _transfer(url, part, validator, progress)
    try:
        check(part)
    except TQIndexError:
        part.replace(_beside(target, ".rejected"))
        validator.unlink(missing_ok=True)
        raise
    part.replace(target)
    validator.unlink(missing_ok=True)


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Turn what urllib raises into a DownloadError of one line."""
    try:
        yield
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"{url}: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {str(error) or type(error).__name__}") from error


def _open(url: str, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT} | headers)
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _transfer(url: str, part: Path, validator: Path, progress: Progress) -> None:
    """Bring `part` to the length of the server's file."""
    # Without the server's mark for this version of the file, the bytes here may belong to another one.
    known = validator.read_text() if part.exists() and validator.exists() else ""
    offset = part.stat().st_size if known else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": known} if offset else {}
    try:
        response = _open(url, headers)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
            raise
        with error:
            complete = error.headers.get("Content-Range") == f"bytes */{offset}"
        if not complete:
            part.unlink()
            _transfer(url, part, validator, progress)
        return
    with response:
        _receive(response, url, part, validator, offset, progress)


def _receive(response: Any, url: str, part: Path, validator: Path, offset: int, progress: Progress) -> None:
    resumed = response.status == HTTPStatus.PARTIAL_CONTENT
    came = response.headers.get("Content-Range")
    if resumed and not (came or "").startswith(f"bytes {offset}-"):
        raise DownloadError(f"{url}: Content-Range must begin at byte {offset}, as asked; got {came}")
    if not resumed:
        offset = 0
        # First the old bytes go: they must never stand beside the new file's mark.
        part.unlink(missing_ok=True)
        validator.write_text(_strong_validator(response.headers))
    length = response.headers.get("Content-Length")
    total = None if length is None else offset + int(length)
    with part.open("ab" if resumed else "wb") as file:
        progress(offset, total)
        # read1 hands over what has arrived, so that nothing is lost when the user stops the command.
        while offset != total and (block := response.read1(BLOCK)):
            file.write(block)
            offset += len(block)
            progress(offset, total)
    if total is not None and offset != total:
        raise DownloadError(
            f"{url}: the connection closed after {offset} of {total} bytes; give the same command again"
        )


def _strong_validator(headers: Any) -> str:
    """What If-Range may compare: a strong ETag, else the date; "" where the server gives neither."""
    etag = headers.get("ETag") or ""
    if etag and not etag.startswith("W/"):
        return str(etag)
    return str(headers.get("Last-Modified") or "")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a Hugging Face dataset repository: name without folders, length in bytes, sha256 in hex."""

    name: str
    url: str
    size: int
    sha256: str

    def check(self, path: Path) -> None:
        """Raise DownloadError if the file at `path` is not this one."""
        size = path.stat().st_size
        if size != self.size:
            raise DownloadError(f"{self.url}: must be of {self.size} bytes, as listed; got {size}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise DownloadError(f"{self.url}: sha256 must be {self.sha256}, as listed; got {digest}")


def list_parquet(base_url: str, repository: str) -> list[RemoteFile]:
    """The parquet files under data/ of a Hugging Face dataset repository, in the order of their names.

    Raises DownloadError if the server refuses, or its listing is not of the form of the Hub's tree API.
    """
    url = f"{base_url}/api/datasets/{repository}/tree/main/data"
    with _network_errors(url), _open(url, {}) as response:
        listing = response.read()
    try:
        paths = [entry for entry in json.loads(listing) if entry["path"].endswith(".parquet")]
        files = [_remote_file(base_url, repository, entry) for entry in paths]
    except (ValueError, TypeError, LookupError) as error:
        raise DownloadError(f"{url}: must list files with path, size and sha256; got {error!r}") from error
    return sorted(files, key=lambda file: file.name)


def _remote_file(base_url: str, repository: str, entry: dict[str, Any]) -> RemoteFile:
    # For a file in large-file storage, `lfs` has the size and the sha256 of the file itself.
    path, size, sha256 = entry["path"], int(entry["lfs"]["size"]), entry["lfs"]["oid"]
    # The name becomes a local one, so it must be plain.
    if not re.fullmatch(r"data/\w[\w.-]*", path) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"{path} {sha256}")
    url = f"{base_url}/datasets/{repository}/resolve/main/{path}"
    return RemoteFile(PurePosixPath(path).name, url, size, sha256)


def parquet_rows(path: Path) -> int:
    """How many rows a parquet file holds; FileFormatError if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowInvalid as error:
        raise FileFormatError(f"{path}: not a parquet file: {error}") from error


def parquet_vectors(
    paths: Sequence[Path], column: str, dim: int, start: int, stop: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Rows start..stop of a list column, over files read one after another, as float32 blocks (m, dim).

    Raises FileFormatError if the column is missing, holds something else than lists of `dim` numbers, or ends
    before `stop`.
    """
    first = 0  # number of the next batch's first row
    for path in paths:
        if first >= stop:
            return
        count = parquet_rows(path)
        if first + count <= start:
            first += count
            continue
        for block in _column_blocks(path, column, dim):
            wanted = block[max(0, start - first) : max(0, stop - first)]
            first += len(block)
            if len(wanted):
                yield wanted
            if first >= stop:
                return
    if first < stop:
        raise FileFormatError(f"{paths[-1]}: the files must hold {stop} rows together; got {first}")


def _column_blocks(path: Path, column: str, dim: int) -> Iterator[npt.NDArray[np.float32]]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    # By default pyarrow reads ahead and keeps what it has read: the whole file, in the end.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK) as file:
        if column not in file.schema_arrow.names:
            raise FileFormatError(f"{path}: must have a column {column}; got {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
            lists = batch.column(0)
            if not _is_number_lists(lists.type):
                raise FileFormatError(f"{path}: column {column} must hold lists of numbers; got {lists.type}")
            if lists.null_count or not pc.all(pc.equal(pc.list_value_length(lists), dim)).as_py():
                raise FileFormatError(f"{path}: column {column} must hold {dim} numbers in every row; got others")
            flat = lists.flatten().to_numpy(zero_copy_only=False)
            yield flat.astype(np.float32).reshape(len(lists), dim)


def _is_number_lists(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def check_ann_hdf5(path: Path, distance: str, train: tuple[int, int], test: tuple[int, int]) -> None:
    """Raise FileFormatError if `path` is not an ann-benchmarks file of this distance and these shapes."""
    try:
        with h5py.File(path, "r") as file:
            _check_structure(path, file, distance, train, test)
    except FileFormatError:
        raise
    except OSError as error:
        raise FileFormatError(f"{path}: not an HDF5 file: {error}") from error


def _check_structure(path: Path, file: Any, distance: str, train: tuple[int, int], test: tuple[int, int]) -> None:
    for name, shape, kind in (("train", train, "f"), ("test", test, "f")):
        found = file.get(name)
        if not isinstance(found, h5py.Dataset) or found.shape != shape or found.dtype.kind != kind:
            raise FileFormatError(f"{path}: {name} must be float of shape {shape}; got {_described(found)}")
    for name, kinds in (("neighbors", "iu"), ("distances", "f")):
        found = file.get(name)
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in kinds or found.shape[:1] != test[:1]:
            raise FileFormatError(
                f"{path}: {name} must have one row for each of {test[0]} queries; got {_described(found)}"
            )
    # ann-benchmarks' older files have no `type` and no `dimension`.
    for attribute, value in (("distance", distance), ("type", "dense"), ("dimension", train[1])):
        if file.attrs.get(attribute, None if attribute == "distance" else value) != value:
            raise FileFormatError(f"{path}: attribute {attribute} must be {value}; got {file.attrs.get(attribute)}")


def _described(found: Any) -> str:
    return f"{found.dtype} of shape {found.shape}" if isinstance(found, h5py.Dataset) else "no such dataset"


def check_neighbors(path: Path, count: int = 5) -> None:
    """Compare the neighbours of `count` queries, evenly spaced, with exact ones.

    As ann-benchmarks judges recall, by distance: a neighbour is right when it is no further than the exact one
    of its rank, so ties may stand in any order. Raises FileFormatError naming the query that differs.
    """
    with h5py.File(path, "r") as file:
        rows = np.unique(np.linspace(0, len(file["test"]) - 1, count).astype(np.int64))
        listed, distances = file["neighbors"][rows], file["distances"][rows]
        queries = file["test"][rows]
        metric = METRICS[file.attrs["distance"]]
        _, exact = exact_neighbors(file["train"], queries, listed.shape[1], metric)
        if listed.min() < 0 or listed.max() >= len(file["train"]):
            raise FileFormatError(f"{path}: neighbors must be rows of train; got {listed.min()}..{listed.max()}")
        for row, query, ids, given, right in zip(rows, queries, listed, distances, exact, strict=True):
            order = np.unique(ids)
            _, actual = exact_neighbors(file["train"][order], query[None], len(order), metric)
            if (
                len(order) != len(ids)
                or not np.allclose(actual[0], right, rtol=0, atol=DISTANCE_TOLERANCE)
                or not np.allclose(np.sort(given), right, rtol=0, atol=DISTANCE_TOLERANCE)
            ):
                raise FileFormatError(f"{path}: neighbours of query {row} must be the exact ones; they differ")
