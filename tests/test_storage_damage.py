"""What is not a sound index is refused, by one line that names the file."""

import hashlib
import json
import os
import random
import re
import shutil

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import CorruptIndexError, FormatVersionError, MissingFileError, StorageError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small index with two segments: generated ids; ids of the caller's, the last of them removed."""
    place = tmp_path_factory.mktemp("sound") / "index"
    index = tq.Index(7, codec="prod", bits=4, metric="l2", center=np.ones(7))
    index.add(np.random.default_rng(0).standard_normal((70, 7)))
    index.save(place)
    index.add(np.random.default_rng(1).standard_normal((4, 7)), ids=[100, 90, 95, 3000])
    index.remove([3000])
    index.save(place)
    return place


@pytest.fixture
def place(sound, tmp_path):
    """A copy to damage."""
    return shutil.copytree(sound, tmp_path / "index")


def segments(place):
    """The segment files, in the order of their rows."""
    return [place / entry["file"] for entry in json.loads((place / "manifest.json").read_bytes())["segments"]]


def live_file(place):
    """The live file of the second segment."""
    return place / json.loads((place / "manifest.json").read_bytes())["segments"][1]["live"]["file"]


def refused(place, words="", error=CorruptIndexError, mmap=False):
    """Check that an index is refused with one line of bounded length that starts with its name."""
    with pytest.raises(error) as caught:
        tq.load(place, mmap=mmap)
    message = str(caught.value)
    assert message.startswith(str(place))
    assert "\n" not in message
    assert len(message) < len(str(place)) + 300
    assert words in message


def forge(place, change):
    """Change the manifest and give it the right checksum: damage that only checks of every field can find."""
    fields = json.loads((place / "manifest.json").read_bytes())
    del fields["sha256"]
    change(fields)
    body = json.dumps(fields, indent=2).encode().removesuffix(b"\n}")
    ending = b',\n  "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
    (place / "manifest.json").write_bytes(body + ending)


def forge_header(place, change):
    """Change the header of the first segment, and the manifest to match."""
    path = segments(place)[0]
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:start])
    fields = change(fields) or fields
    header = json.dumps(fields).encode()
    header += b" " * (-(8 + len(header)) % 64)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])
    adopt(place, path)


def adopt(place, path):
    """Give the manifest the first segment's size and checksum as they now are."""
    content = path.read_bytes()
    forge(
        place,
        lambda fields: fields["segments"][0].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
    )


# --- not an index ---


@pytest.mark.parametrize("mmap", [True, False])
def test_nothing_there(tmp_path, mmap):
    for name in ("no", "no/no"):
        refused(tmp_path / name, "does not exist", MissingFileError, mmap)


def test_folders_and_files_that_are_no_index(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    for name in ("file", "empty", "full"):
        refused(tmp_path / name, "is not a tqindex index: it has no manifest.json")
    for content in (b"", b"{", b"[]", b"3", b'{"format": "other"}', b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "full" / "manifest.json").write_bytes(content)
        refused(tmp_path / "full")


def test_a_manifest_must_be_a_file_of_bounded_size(place):
    os.truncate(place / "manifest.json", 2**40)
    refused(place, "must have at most 268435456 bytes, got 1099511627776")
    (place / "manifest.json").unlink()
    os.mkfifo(place / "manifest.json")
    refused(place, "it has no manifest.json")


def test_a_name_that_is_too_long(tmp_path):
    refused(tmp_path / ("x" * 300), "cannot be read: File name too long", StorageError)


@pytest.mark.parametrize("mmap", [True, False])
def test_unreadable_files(place, monkeypatch, mmap):
    def deny(*arguments, **options):
        raise PermissionError(13, "Permission denied")  # a file mode would not stop root

    monkeypatch.setattr(np, "memmap" if mmap else "fromfile", deny)
    refused(place, "cannot be read: Permission denied", StorageError, mmap)


# --- damage that happens ---


@pytest.mark.parametrize("mmap", [True, False])
def test_truncated_files(place, mmap):
    for path in (place / "manifest.json", *segments(place), live_file(place)):
        content = path.read_bytes()
        for size in {0, 1, 7, 8, 100, len(content) // 2, len(content) - 65, len(content) - 1} & {*range(len(content))}:
            path.write_bytes(content[:size])
            refused(place, mmap=mmap)
        path.write_bytes(content + b"\0")
        refused(place, mmap=mmap)
        path.unlink()
        refused(place, mmap=mmap)
        path.write_bytes(content)
    assert len(tq.load(place)) == 73


def test_search_of_a_map_whose_numbers_are_noise(place):
    rng = random.Random(6)
    for path in segments(place):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(content[:start] + rng.randbytes(len(content) - start))
    index = tq.load(place)
    for k in (1, 3, 100):
        with np.errstate(over="ignore"):
            ids = index.search(np.ones((2, 7)), k).ids
            assert ids.shape == (2, k)
            assert (ids != np.iinfo(np.int64).max).all()  # the mark of an empty place stays inside


# --- damage that someone made ---


@pytest.mark.parametrize(
    ("version", "words"),
    [(4, "has format version 4; this tqindex reads 1 to 3: upgrade tqindex"), ("2.0", "has format version '2.0'")],
)
def test_a_newer_format(place, version, words):
    forge(place, lambda fields: fields.update(version=version, codec="of another kind"))
    refused(place, words, FormatVersionError)


@pytest.mark.parametrize(
    "name",
    ["../{0}", "/etc/passwd", "{1}", "{1}/{0}", "./{0}", "segment-0.safetensors", "", 3, None, ["{0}"]],
    ids=repr,
)
def test_file_names_that_lead_elsewhere(place, name):
    first = segments(place)[0]
    shutil.copy(first, place.parent / first.name)
    name = name.format(first.name, place) if isinstance(name, str) else name
    forge(place, lambda fields: fields["segments"][0].update(file=name))
    refused(place, "has a segment that cannot be used")


@pytest.mark.parametrize(
    "name", ["../{0}", "/etc/passwd", "{1}/{0}", "live-0.bin", "segment-{0}", "", 3, ["{0}"]], ids=repr
)
def test_names_of_live_files_that_lead_elsewhere(place, name):
    live = live_file(place)
    shutil.copy(live, place.parent / live.name)
    name = name.format(live.name, place) if isinstance(name, str) else name
    forge(place, lambda fields: fields["segments"][1]["live"].update(file=name))
    refused(place, "has a segment that cannot be used")


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("which", [lambda place: segments(place)[0], live_file], ids=["segment", "live file"])
def test_a_file_must_not_be_a_link_or_a_folder(place, which, mmap):
    path = which(place)
    path.rename(place.parent / "elsewhere")
    for make in (lambda: path.symlink_to(place.parent / "elsewhere"), lambda: os.mkfifo(path)):
        make()
        refused(place, f"{path.name} is missing or not a plain file", mmap=mmap)
        path.unlink()
    path.mkdir()
    refused(place, f"{path.name} is missing or not a plain file", mmap=mmap)


def test_a_manifest_must_not_be_a_link(place):
    path = place / "manifest.json"
    path.rename(place.parent / "elsewhere")
    path.symlink_to(place.parent / "elsewhere")
    refused(place, "manifest.json must be a plain file, not a link")


HUGE = 2**62
FIELDS = {
    "metric": lambda fields: fields.update(metric="l3"),
    "metric list": lambda fields: fields.update(metric=["l2"]),
    "no metric": lambda fields: fields.pop("metric"),
    "next_id": lambda fields: fields.update(next_id=-1),
    "huge next_id": lambda fields: fields.update(next_id=2**63),
    "text next_id": lambda fields: fields.update(next_id="3"),
    "originals": lambda fields: fields.update(originals="float64"),
    "originals list": lambda fields: fields.update(originals=["float16"]),
    "originals that are not there": lambda fields: fields.update(originals="float16"),
    "no codec": lambda fields: fields.pop("codec"),
    "codec": lambda fields: fields.update(codec=[1]),
    "text codec": lambda fields: fields.update(codec="x"),
    "bits": lambda fields: fields["codec"].update(bits=5),
    "dim": lambda fields: fields["codec"].update(dim=8),
    "huge dim": lambda fields: fields["codec"].update(dim=2**40),
    "center": lambda fields: fields["codec"].update(center=[1.0]),
    "nan center": lambda fields: fields["codec"].update(center=[float("nan")] * 7),
    "extra": lambda fields: fields["codec"].update(extra=1),
    "codebook": lambda fields: fields["codec"].update(codebook={}),
    "codebook text": lambda fields: fields["codec"]["codebook"].update(centroids="abcd"),
    "codebook huge": lambda fields: fields["codec"]["codebook"].update(centroids=[10**400] * 4),
    "segments": lambda fields: fields.update(segments=3),
    "segment": lambda fields: fields["segments"].append("x"),
    "segment without n": lambda fields: fields["segments"][0].pop("n"),
    "segment with more": lambda fields: fields["segments"][0].update(more=1),
    "n": lambda fields: fields["segments"][0].update(n=-1),
    "true n": lambda fields: fields["segments"][0].update(n=True),
    "larger n": lambda fields: fields["segments"][0].update(n=129),
    "smaller n": lambda fields: fields["segments"][0].update(n=64),
    "huge n": lambda fields: fields["segments"][0].update(n=HUGE),
    "huger n": lambda fields: fields["segments"][0].update(n=2**63 - 1),
    "float n": lambda fields: fields["segments"][0].update(n=70.0),
    "first_id": lambda fields: fields["segments"][0].update(first_id=-1),
    "text first_id": lambda fields: fields["segments"][0].update(first_id="0"),
    "no first_id": lambda fields: fields["segments"][0].update(first_id=None),
    "bytes": lambda fields: fields["segments"][0].update(bytes=1),
    "sha256": lambda fields: fields["segments"][0].update(sha256=None),
    "live": lambda fields: fields["segments"][1].update(live=3),
    "live without removed": lambda fields: fields["segments"][1]["live"].pop("removed"),
    "live with more": lambda fields: fields["segments"][1]["live"].update(more=1),
    "live in version 1": lambda fields: fields.update(version=1),
    "live bytes": lambda fields: fields["segments"][1]["live"].update(bytes=2),
    "live bytes huge": lambda fields: fields["segments"][1]["live"].update(bytes=HUGE),
    "live sha256": lambda fields: fields["segments"][1]["live"].update(sha256=None),
    "another live sha256": lambda fields: fields["segments"][1]["live"].update(sha256="0" * 64),
    "none removed": lambda fields: fields["segments"][1]["live"].update(removed=0),
    "others removed": lambda fields: fields["segments"][1]["live"].update(removed=2),
    "more than n removed": lambda fields: fields["segments"][1]["live"].update(removed=5),
    "float removed": lambda fields: fields["segments"][1]["live"].update(removed=1.0),
    "live of another segment": lambda fields: fields["segments"][0].update(live=fields["segments"][1]["live"]),
}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS)
def test_manifest_fields(place, change, mmap):
    forge(place, change)
    refused(place, mmap=mmap)


def fields_of(**fields):
    return lambda header, name: header[name].update(fields)


# 256 bytes each: "lead" is (2, 16, 8), "rest" (128, 2).
HEADERS = {
    "list": lambda header, name: [header],
    "no tensor": lambda header, name: header.pop(name) and None,
    "no scales": lambda header, name: header.pop("scales") and None,
    "name only": lambda header, name: header.update({name: 3}),
    "names exchanged": lambda header, name: header.update(lead=header["rest"], rest=header["lead"]),
    "field missing": lambda header, name: header[name].pop("shape") and None,
    "field too many": fields_of(more=1),
    "dtype": fields_of(dtype="F64"),
    "dtype list": fields_of(dtype=["U8"]),
    "wrong dtype": fields_of(dtype="I64", shape=[32]),
    "shape": fields_of(shape=[128]),
    "shape of as many bytes": fields_of(shape=[256]),
    "axes exchanged": lambda header, name: header[name]["shape"].reverse(),
    "shape text": fields_of(shape="128"),
    "negative shape": fields_of(shape=[-128, -2]),
    "huge shape": fields_of(shape=[HUGE, 4]),
    "shape that overflows": fields_of(shape=[2**63, 4]),
    "shape past any integer": fields_of(shape=[10**30, 0]),
    "float shape": fields_of(shape=[128.0, 2]),
    "many axes": fields_of(shape=[1] * 99),
    "offsets": fields_of(data_offsets=[0, 255]),
    "offsets of more bytes": fields_of(data_offsets=[0, 512]),
    "offsets reversed": fields_of(data_offsets=[256, 0]),
    "offsets negative": fields_of(data_offsets=[-256, 0]),
    "offsets huge": fields_of(data_offsets=[HUGE, HUGE + 256]),
    "offsets float": fields_of(data_offsets=[0.0, 256.0]),
    "offsets text": fields_of(data_offsets=["0", "256"]),
    "offsets unaligned": fields_of(data_offsets=[1, 257]),
    "three offsets": fields_of(data_offsets=[0, 0, 256]),
}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", ["lead", "rest"])
@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_segment_headers(place, change, name, mmap):
    forge_header(place, lambda header: change(header, name))
    refused(place, segments(place)[0].name, mmap=mmap)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 2**20 + 1, 3, 0])
def test_header_lengths(place, length, mmap):
    path = segments(place)[0]
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    adopt(place, path)
    refused(place, f"{path.name} is altered: its ", mmap=mmap)


def test_a_header_is_bounded_before_it_is_parsed(place):
    path = segments(place)[0]
    content = path.read_bytes()
    start, length = 8 + int.from_bytes(content[:8], "little"), 2**20 + 56
    header = content[8:start].ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + content[start:])
    adopt(place, path)
    refused(place, f"{path.name} is altered: its header cannot have {length} bytes")


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("content", [b"", b"\0", b"\0" * 64, (56).to_bytes(8, "little") + b"[" * 56], ids=len)
def test_a_segment_of_next_to_nothing(place, content, mmap):
    path = segments(place)[0]
    path.write_bytes(content)
    adopt(place, path)
    refused(place, path.name, mmap=mmap)


# The second segment has four rows; the last of them is removed.
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0b0001_0111, "it has bits past the segment's 4 rows"),
        (0b1000_0111, "it has bits past the segment's 4 rows"),
        (0b0000_0011, "1 rows must be removed in it, got 2"),
        (0b0000_1111, "1 rows must be removed in it, got 0"),
    ],
)
def test_live_bits_that_do_not_fit(place, bits, words, mmap):
    path, content = live_file(place), bytes([bits])
    assert path.read_bytes() == b"\7"
    path.write_bytes(content)
    refused(place, f"{path.name} is altered: its checksum does not match", mmap=mmap)
    digest = hashlib.sha256(content).hexdigest()
    forge(place, lambda fields: fields["segments"][1]["live"].update(sha256=digest))
    refused(place, f"{path.name} is altered: {words}", mmap=mmap)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    ("segment", "content", "removed"),
    [(1, b"\x0f", 0), (1, b"\7\0", 1), (1, b"", 4), (0, b"\xff" * 8, 6), (0, b"\xff" * 8 + b"\x3f\0", 0)],
    ids=["nothing removed", "a byte too many", "empty", "a byte too few", "nothing, a byte too many"],
)
def test_a_live_file_has_a_bit_for_each_row_and_removes_some(place, segment, content, removed, mmap):
    digest = hashlib.sha256(content).hexdigest()
    entry = {"file": f"live-{digest[:16]}.bin", "bytes": len(content), "sha256": digest, "removed": removed}
    (place / entry["file"]).write_bytes(content)
    forge(place, lambda fields: fields["segments"][segment].update(live=entry))
    refused(place, "has a segment that cannot be used", mmap=mmap)


# --- what only verify sees ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda fields: fields["segments"][0].update(first_id=30), "index has the id 90 twice"),
        (lambda fields: fields.update(next_id=100), "index must have ids from 0 to 99, got 0 to 100"),
        (lambda fields: fields["segments"].append(fields["segments"][0]), "index has the id 0 twice"),
    ],
)
def test_verify_checks_ids(place, change, words):
    assert tq.verify(place).manifest.n == 73
    forge(place, change)
    assert len(tq.load(place)) >= 73
    with pytest.raises(CorruptIndexError, match=re.escape(words)):
        tq.verify(place)


def test_verify_does_not_mind_what_is_removed(place):
    forge(place, lambda fields: fields.update(next_id=101))  # 3000 was given, and is gone
    assert tq.verify(place).manifest.n == 73
    index = tq.load(place)
    index.add(np.ones(7), ids=[3000])
    index.save(place)
    assert tq.verify(place).manifest.n == 74


def test_verify_finds_an_id_that_a_removed_row_hides(place):
    index = tq.load(place)
    index.update([5], np.ones((1, 7)))
    index.save(place)
    assert tq.verify(place).manifest.n == 73

    def exchange(fields):  # row 5 is live again, and what took its place is removed
        first, _, last = fields["segments"]
        digest = hashlib.sha256(b"\0").hexdigest()
        last["live"] = {"file": f"live-{digest[:16]}.bin", "bytes": 1, "sha256": digest, "removed": 1}
        del first["live"]

    (place / f"live-{hashlib.sha256(bytes(1)).hexdigest()[:16]}.bin").write_bytes(b"\0")
    forge(place, exchange)
    with pytest.raises(CorruptIndexError, match="index has the id 5 once more in a later row, which is removed"):
        tq.verify(place)


def test_verify_reads_every_byte(place):
    path = segments(place)[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(tq.load(place)) == 73
    with pytest.raises(CorruptIndexError, match=f"{path.name} is altered: its checksum does not match the manifest's"):
        tq.verify(place)
