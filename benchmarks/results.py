"""Result files: one for each suite, data set and size, written anew after every group of rows."""

import contextlib
import json
from pathlib import Path
from typing import Any

from tqindex.errors import FileFormatError, StorageError

FORMAT = 1


class ResultFile:
    """The rows of one suite on one data set.

    Rows whose fingerprint is not among `current` are dropped when the file is written next.

    Parameters
    ----------
    path : Path
    current : set of str
        Fingerprints of everything that is to be in the file.

    Raises
    ------
    FileFormatError
        The file exists and is no result file.
    """

    def __init__(self, path: Path, current: set[str]) -> None:
        self.path = path
        held = _read(path)["rows"] if path.exists() else []
        self.rows: list[dict[str, Any]] = [row for row in held if row.get("fingerprint") in current]

    def missing(self, fingerprints: list[str]) -> list[str]:
        """Return those of which there are no rows."""
        held = {row["fingerprint"] for row in self.rows}
        return [each for each in fingerprints if each not in held]

    def put(self, rows: list[dict[str, Any]], fingerprint: str) -> None:
        """Take a group's rows."""
        self.rows += [row | {"fingerprint": fingerprint} for row in rows]

    def write(self, head: dict[str, Any], order: list[str]) -> None:
        """Write everything, rows in the order of their fingerprints; readers see all of it or the file as it was.

        Raises
        ------
        StorageError
            The folder cannot be written.
        """
        self.rows.sort(key=lambda row: order.index(row["fingerprint"]))
        content = json.dumps({"format": FORMAT, **head, "rows": self.rows}, indent=1, allow_nan=False) + "\n"
        draft = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(content, encoding="utf-8")
            draft.replace(self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path}: cannot be read as a result file: {error}") from error
    if not isinstance(held, dict) or held.get("format") != FORMAT or not isinstance(held.get("rows"), list):
        raise FileFormatError(f"{path}: not a result file of format {FORMAT}")
    return held
