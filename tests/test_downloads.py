"""Downloads that break off, resume and are checked, against a server in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqindex.bench import fetch
from tqindex.errors import FileFormatError

BODY = np.random.default_rng(7).bytes(3_000_000)


def get(site: Any, target: Path, expected: bytes = BODY) -> None:
    def check(path: Path) -> None:
        if path.read_bytes() != expected:
            raise FileFormatError(f"{path}: other bytes")

    fetch.download(f"{site.url}/file", target, check, lambda done, total: None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cut_download(site: Any, target: Path) -> None:
    site.files["/file"] = BODY
    site.cut_after = 2_000_000
    with pytest.raises(fetch.DownloadError, match="closed after 2000000 of 3000000 bytes"):
        get(site, target)
    site.cut_after = None
    site.asked.clear()


def test_download_whole(site: Any, tmp_path: Path) -> None:
    site.files["/file"] = BODY
    get(site, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BODY
    assert names(tmp_path) == ["out"]


def test_a_cut_download_asks_for_the_rest_only(site: Any, tmp_path: Path) -> None:
    cut_download(site, tmp_path / "out")
    assert "out" not in names(tmp_path)
    get(site, tmp_path / "out")
    assert site.asked == [("/file", "bytes=2000000-", 1_000_000)]
    assert (tmp_path / "out").read_bytes() == BODY
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("change", ["no ranges", "other content", "other, shorter content"])
def test_a_download_begins_again_where_it_cannot_resume(site: Any, tmp_path: Path, change: str) -> None:
    cut_download(site, tmp_path / "out")
    site.ranges = change != "no ranges"
    body = {"no ranges": BODY, "other content": BODY[::-1]}.get(change, BODY[:1000])
    site.files["/file"] = body
    get(site, tmp_path / "out", body)
    assert site.asked == [("/file", "bytes=2000000-", len(body))]
    assert (tmp_path / "out").read_bytes() == body


def test_without_a_validator_nothing_is_resumed(site: Any, tmp_path: Path) -> None:
    site.etags = False
    cut_download(site, tmp_path / "out")
    get(site, tmp_path / "out")
    assert site.asked == [("/file", None, len(BODY))]


@pytest.mark.parametrize(("extra", "requests"), [(b"", 1), (b"beyond the end", 2)])
def test_a_part_of_full_length(site: Any, tmp_path: Path, extra: bytes, requests: int) -> None:
    cut_download(site, tmp_path / "out")
    (tmp_path / "out.part").write_bytes(BODY + extra)
    get(site, tmp_path / "out")
    assert len(site.asked) == requests
    assert (tmp_path / "out").read_bytes() == BODY


def test_a_file_that_fails_its_check_is_set_aside(site: Any, tmp_path: Path) -> None:
    site.files["/file"] = BODY[:-1] + b"?"
    with pytest.raises(FileFormatError, match="other bytes"):
        get(site, tmp_path / "out")
    assert names(tmp_path) == ["out.rejected"]


def test_a_check_that_was_interrupted_needs_no_bytes_again(site: Any, tmp_path: Path) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    site.files["/file"] = BODY
    with pytest.raises(KeyboardInterrupt):
        fetch.download(f"{site.url}/file", tmp_path / "out", interrupt, lambda done, total: None)
    site.asked.clear()
    get(site, tmp_path / "out")
    assert site.asked == [("/file", "bytes=3000000-", 0)]
    assert names(tmp_path) == ["out"]


def test_missing_and_unreachable(site: Any, tmp_path: Path) -> None:
    with pytest.raises(fetch.DownloadError, match=r"/file: the server answers 404 Not Found$"):
        get(site, tmp_path / "out")
    with pytest.raises(fetch.DownloadError, match=r"^http://127\.0\.0\.1:1/file: .*refused"):
        fetch.download("http://127.0.0.1:1/file", tmp_path / "out", print, lambda done, total: None)
    assert names(tmp_path) == []
