"""What an index's directory may hold: names, which files are ours, and which of them may go."""

import re
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
MANIFEST_BEGINNING = b'{\n  "format": "tqindex",'
LOCK = "lock"
LOCK_BEGINNING = b'{"tqindex": "writer"'
SEGMENT_NAME = re.compile(r"segment-[0-9a-f]{16}\.safetensors")
LIVE_NAME = re.compile(r"live-[0-9a-f]{16}\.bin")
_NAMED = f"{SEGMENT_NAME.pattern}|{LIVE_NAME.pattern}"
#: What manifests name, and what a save that was killed may leave of such a file or of a manifest.
_OURS = re.compile(rf"{_NAMED}|\.({_NAMED}|{re.escape(MANIFEST)})\.[0-9a-f]{{8}}\.tmp")


def is_manifest(path: Path) -> bool:
    """Say whether a file is, or was before it was damaged, the manifest of an index: others use the name too."""
    return is_plain_file(path) and _begins(path, MANIFEST_BEGINNING)


def is_ours(directory: Path) -> bool:
    """Say whether a path is an index, be it a damaged one, or a directory with nothing but our leftovers."""
    if not directory.is_dir():
        return False
    return is_manifest(directory / MANIFEST) or all(
        _OURS.fullmatch(path.name) or _is_lock(path) for path in directory.iterdir()
    )


def is_plain_file(path: Path) -> bool:
    """Say whether a path is a file, not a link to one."""
    return path.is_file() and not path.is_symlink()


def our_files(directory: Path) -> set[str]:
    """Names of the files that manifests may name, and of what killed saves left."""
    return {path.name for path in directory.iterdir() if _OURS.fullmatch(path.name)}


def remove_files(directory: Path, names: set[str]) -> None:
    """Remove files that no manifest names; one that stays does no harm."""
    for name in names:
        with suppress(OSError):
            (directory / name).unlink()


def holds_nothing(directory: Path) -> bool:
    """Say whether a directory is empty, but for a lock."""
    return all(_is_lock(path) for path in directory.iterdir())


def _is_lock(path: Path) -> bool:
    return path.name == LOCK and is_plain_file(path) and (not path.stat().st_size or _begins(path, LOCK_BEGINNING))


def _begins(path: Path, beginning: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning
