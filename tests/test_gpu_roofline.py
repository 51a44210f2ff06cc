"""The page's arithmetic, on counts that are known; and what the kernels must reach by their own counts."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from tqindex.codec import Codec
from tqindex.gpu import measure, roofline
from tqindex.gpu.attention_cases import attention_cases
from tqindex.gpu.host import build
from tqindex.gpu.host.count import ArrayTraffic, Counts
from tqindex.gpu.measure import Measured
from tqindex.gpu.roofline import CHIPS, Profile, Result, evaluate, write_page
from tqindex.gpu.roofline_cases import Case, Sample, all_cases, encode, search_one
from tqindex.gpu.runtime import Kernel
from tqindex.gpu.sources import hash_sources

A100, CACHE = CHIPS[0], CHIPS[0].cache_bytes
NOTHING = ArrayTraffic(0, 0, 0, 0)


def counts(size: int, once: int, each: int, integers: int = 0, name: str = "one", turns: int = 0) -> Counts:
    """Counts of a kernel that reads one argument and does arithmetic."""
    operations = {"loads": 0, "stores": 0, "dp4a": 0, "shuffles": 0, "votes": 0, "barriers": 0, "mma": 0}
    loads = ArrayTraffic(each, each, each, once)
    return Counts(
        Kernel("one.cu", name),
        (1,),
        (32,),
        (size,),
        (loads,),
        (NOTHING,),
        turns,
        0,
        0,
        operations,
        {"integer": integers},
    )


def case(*samples: Sample, rows: int) -> Case:
    """A case that gives these samples, in turn."""
    found = iter(samples)

    class Given(Case):
        def sample(self, rows: int) -> Sample:
            sample = next(found)
            assert sample.rows == rows
            return sample

    return Given("given", rows, tuple(sample.rows for sample in samples), encode, Codec(64))


def test_what_fits_the_cache_moves_once_and_what_does_not_for_each_block() -> None:
    assert Profile.of(counts(CACHE // 2, once=100, each=700)).moved_bytes(CACHE) == 100
    assert Profile.of(counts(CACHE // 2 + 1, once=100, each=700)).moved_bytes(CACHE) == 700


def test_a_chip_takes_the_time_of_its_busiest_unit() -> None:
    second = A100.multiprocessors * A100.clock
    work = counts(100, once=int(A100.bandwidth / 4), each=0, integers=int(second), turns=int(second / 8))
    seconds = Profile.of(work).seconds(A100)
    assert seconds["memory"] == pytest.approx(0.25)
    assert seconds["shared memory"] == pytest.approx(0.125)
    assert seconds["issue"] == pytest.approx(0.25)
    assert seconds["integers"] == pytest.approx(0.5)  # 64 a clock: two warps' instructions
    result = Result(all_cases()[0], 1.0, {"one": Profile.of(work), "other": Profile.of(work)}, 0.0)
    assert result.seconds(A100) == pytest.approx(1.0)
    assert result.busiest(A100) == "integers"


def test_counts_go_on_along_a_line() -> None:
    samples = [Sample(rows, [counts(100, 10 + 3 * rows, 0, 7 * rows)], 2.0 * rows) for rows in (10, 20, 30)]
    result = evaluate(case(*samples, rows=1000))
    assert result.least_bytes == 2000
    assert result.moved_bytes() == 3010
    assert result.deviation == pytest.approx(0)


def test_a_third_size_off_the_line_is_told() -> None:
    samples = [Sample(rows, [counts(100, 3 * rows, 0, 7 * rows)], 2.0 * rows) for rows in (10, 20)]
    bent = Sample(30, [counts(100, 3 * 30, 0, 10 * 30)], 60.0)
    assert evaluate(case(*samples, bent, rows=1000)).deviation == pytest.approx(0.3)


def test_launches_of_a_kernel_are_added_up() -> None:
    twice = [[counts(100, rows, 0, 1), counts(100, rows, 0, 1), counts(100, 5, 0, 1, "two")] for rows in (1, 2, 3)]
    samples = [Sample(rows, launches, 1.0) for rows, launches in zip((1, 2, 3), twice, strict=True)]
    profiles = evaluate(case(*samples, rows=10)).profiles
    assert profiles["one"].moved_bytes(CACHE) == 20
    assert profiles["two"].moved_bytes(CACHE) == 5


def test_the_page_tells_what_is_computed_and_what_was_measured() -> None:
    result = Result(all_cases()[0], 1e6, {"one": Profile.of(counts(100, 10**6, 0, 10**6))}, 0.01)
    device = {"name": "A chip", "driver": "13.0", "cuda": "13.2", "cupy": "14"}
    given = {result.case.name: [0.003, 0.001, 0.0015]}
    pages = [write_page([result], None), write_page([result], Measured(device, hash_sources(), given))]
    pages.append(write_page([result], Measured(device, "of others", {})))
    assert ["A chip, measured" in page for page in pages] == [False, True, True]
    assert ["have changed since" in page for page in pages] == [False, False, True]
    assert ["| 1.500 ms |" in page for page in pages] == [False, True, False]
    page = pages[1]
    assert "| `one` | 1.0 MB | 0.000 |" in page
    for chip in CHIPS:
        assert chip.name in page
    tables = [
        list(rows) for is_table, rows in itertools.groupby(page.splitlines(), lambda line: line[:1] == "|") if is_table
    ]
    assert len(tables) == 3
    assert all(len({row.count("|") for row in table}) == 1 for table in tables)


def test_the_committed_page_is_of_these_cases_and_chips() -> None:
    page = (Path(roofline.__file__).parent / "ROOFLINE.md").read_text()
    empty = write_page([], Measured.read())
    assert page[: page.index("| case |")] == empty[: empty.index("| case |")]
    assert page[page.index("| chip |") :] == empty[empty.index("| chip |") :]
    first_table = page[page.index("| case |") : page.index("## Kernel")].splitlines()[2:]
    found = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in first_table if line]
    assert found == [(case.name, f"{case.rows:,}") for case in (*all_cases(), *attention_cases())]


def test_encoding_moves_little_more_than_it_must() -> None:
    """The paper's time is 1.3 ms; so much would do for the bytes."""
    result = evaluate(Case("encode", 100_000, (8, 16, 24), encode, Codec(1536, bits=4)))
    assert result.moved_bytes() <= 1.25 * result.least_bytes
    assert sum(p.seconds(A100)["memory"] for p in result.profiles.values()) <= 1.3e-3
    assert result.deviation < 0.05


def test_one_query_moves_little_more_than_it_must() -> None:
    result = evaluate(Case("one", 1_000_000, (4096, 8192, 12288), search_one, Codec(256)))
    assert result.moved_bytes() <= 1.25 * result.least_bytes
    assert result.deviation < 0.05


@pytest.mark.parametrize("command", [roofline, measure])
def test_a_bad_output_is_told_before_the_work(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline, "evaluate", None)
    monkeypatch.setattr(measure, "open_device", None)
    with pytest.raises(SystemExit) as ended:
        command.main(["--output", str(tmp_path / "missing" / "page")])
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "must be a folder that exists" in error


def test_counting_without_a_compiler_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unusual = Case("unusual", 100, (8, 16, 24), encode, Codec(67))  # no other test has compiled it
    monkeypatch.setattr(roofline, "all_cases", lambda: [unusual])
    monkeypatch.setattr(build, "_COMPILER", "no-such-compiler")
    monkeypatch.setenv("TQINDEX_CACHE_DIR", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        roofline.main(["--output", str(tmp_path / "page.md")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no-such-compiler, which is not installed" in error
    assert not (tmp_path / "page.md").exists()


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
def test_cases_are_measured_on_a_device(tmp_path: Path) -> None:
    case = attention_cases()[0].name
    measure.main(["--only", case, "--repeats", "2", "--output", str(tmp_path / "measured.json")])
    found = Measured.read(tmp_path / "measured.json")
    assert found.sources == hash_sources()
    assert list(found.seconds) == [case]
    assert len(found.seconds[case]) == 2
