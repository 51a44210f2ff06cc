"""Tables and sentences of the report, from invented results (`golden/make_bench.py`)."""

import json
from pathlib import Path

import pytest

from tqindex.bench.report import numbers
from tqindex.bench.report.losses import (
    ahead_in_recall,
    ahead_in_speed,
    indexing_ratios,
    lost_to_long_pq,
    lost_to_pq,
    outside_distortion,
    without_pq,
)
from tqindex.bench.report.machine import changed_trees, machine_table
from tqindex.bench.report.markdown import render_markdown
from tqindex.bench.report.results import Result, load_results, of_suite, total_bytes
from tqindex.bench.report.sections import build_sections
from tqindex.bench.report.tables import compared, ordered, pq_margins, result_table
from tqindex.errors import FileFormatError, MissingFileError

SAMPLE = Path(__file__).parent / "golden" / "bench"


@pytest.fixture
def results() -> list[Result]:
    return load_results(SAMPLE)


def cells(table, label, bits):
    """Return a line's cells by the header, of a label and width."""
    line = next(line for line in table.lines if line.cells[0] == label and bits in line.cells[:3])
    return dict(zip(table.header, line.cells, strict=True))


# --- result files ---


def test_results_come_in_the_order_of_a_report(results):
    assert [result.suite for result in results] == [
        *["recall"] * 2, *["indexing"] * 2, *["search"] * 2, "scale", "threads", "distortion",
    ]  # fmt: skip
    assert [result.name for result in results[:2]] == ["GloVe-100", "OpenAI ada-002"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"suite": "colour"}, "colour"),
        ({"format": "1"}, "format 1"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    content = json.loads((SAMPLE / "distortion.json").read_text()) | change
    (tmp_path / "one.json").write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match=message):
        load_results(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}'])
def test_files_that_are_no_results_are_refused(tmp_path, text):
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"one\.json"):
        load_results(tmp_path)


def test_empty_and_absent_folders_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MissingFileError, match=str(folder)):
            load_results(folder)


# --- numbers ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.0123456, "0.0123"),
        (0.99951, "1.000"),
        (1.234, "1.23"),
        (99.96, "100.0"),
        (123456, "123,000"),
    ],
)
def test_significant_digits(value, text):
    assert numbers.significant(value) == text


def test_spread_is_half_the_range_and_absent_for_one_seed():
    assert numbers.recall([0.5, 0.6, 0.55]) == "0.550 ±0.050"
    assert numbers.recall([0.5]) == "0.500" == numbers.recall(0.5)
    assert numbers.recall([]) == numbers.recall(None) == "-"


def test_lists_read_as_sentences():
    assert [numbers.joined(list("abc"[:n])) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


# --- tables ---


def test_rows_of_equal_bytes_stand_together(results):
    for result in of_suite(results, "recall"):
        sizes = [total_bytes(row) for row in ordered(result)]
        assert sizes == sorted(sizes)
    tied = [row["method"] for row in ordered(results[0]) if total_bytes(row) == 29]
    assert tied[0] == "tqindex-mse"


def test_recall_table_shows_both_sizes_and_every_k(results):
    row = cells(result_table(results[0]), "faiss PQ (inner product)", "2")
    assert (row["bytes/vector"], row["with shared"]) == ("25", "26")
    assert row["1@1"] == "0.480 ±0.002"
    assert {f"1@{2**i}" for i in range(7)} < set(row)


def test_missing_numbers_are_dashes_not_zeros(results):
    indexing, search = (of_suite(results, suite)[0] for suite in ("indexing", "search"))
    assert cells(result_table(indexing), "tqindex mse", "2")["train, s"] == "-"
    assert cells(result_table(search), "faiss HNSW-flat (M 32, efSearch 64)", "-")["lost"] == "-"
    assert cells(result_table(search), "tqindex mse", "2")["lost"] == "0 %"


def test_passes_are_indexing_over_one_pass(results):
    indexing = of_suite(results, "indexing")[0]
    assert cells(result_table(indexing), "tqindex mse", "4")["passes"] == "5.00"  # 0.055 s of 0.011 s


def test_margins_are_against_the_better_product_quantiser(results):
    row = cells(pq_margins(results[0]), "tqindex mse", "4")
    assert row["k = 1"] == "-0.006"
    assert cells(pq_margins(results[0]), "tqindex mse", "2")["k = 4"] == "+0.006"


def test_the_compared_quantiser_has_the_better_of_each_k(results):
    pq = next(row for row in compared(results[0], 2) if row["method"] == "faiss-pq-ip")
    ip, l2 = (results[0].row(method, 2) for method in ("faiss-pq-ip", "faiss-pq-l2"))
    assert pq["recall_1_at"]["1"] == ip["recall_1_at"]["1"]
    assert pq["recall_1_at"]["64"] == l2["recall_1_at"]["64"]
    assert pq["label"] == "faiss PQ, the better at each k"
    results[0].rows.remove(l2)
    assert ip in compared(results[0], 2)  # under its own name


def test_markdown_escapes_bars(results):
    results[0].rows[0]["label"] = "a|b"
    assert "**a\\|b**" in result_table(results[0]).markdown()


# --- sentences ---


def test_every_k_lost_to_pq_is_stated(results):
    said = lost_to_pq(of_suite(results, "recall"))
    assert len(said) == 2 * 2 * 4  # sets, widths, rows
    assert "GloVe-100, 4 bits: tqindex mse is behind PQ at k = 1, 2, 4, 8, 16, 32 and 64, by up to 0.006." in said
    for label in ("tqindex mse, centred", "tqindex trellis", "tqindex trellis, centred"):
        assert f"GloVe-100, 4 bits: {label} is behind PQ at no k." in said


def test_the_better_of_the_two_quantisers_counts_at_each_k(results):
    glove = results[0]
    glove.row("tqindex-mse", 2)["recall_1_at"]["64"] = [0.9955]
    glove.row("faiss-pq-ip", 2)["recall_1_at"]["64"] = [0.9]
    glove.row("faiss-pq-l2", 2)["recall_1_at"]["64"] = [0.9956]
    assert "GloVe-100, 2 bits: tqindex mse is behind PQ at k = 64, by less than 0.001." in lost_to_pq([glove])


def test_every_k_lost_to_longer_product_codes_is_stated(results):
    glove = results[0]
    assert lost_to_long_pq([glove]) == []
    glove.rows.append(glove.row("faiss-pq-l2", 2) | {"method": "faiss-pq-long"})
    glove.row("faiss-pq-long", 2)["recall_1_at"] |= {"1": [0.99], "2": [0.0]}
    said = lost_to_long_pq([glove])
    assert len(said) == 4  # rows
    assert said[0].startswith("GloVe-100, 2 bits: tqindex mse is behind PQ of as many bytes in all at k = 1")
    assert " 2," not in said[0]


def test_widths_without_pq_are_stated(results):
    glove = results[0]
    glove.rows[:] = [
        row for row in glove.rows if row["method"] not in ("faiss-pq-ip", "faiss-pq-l2") or row["bits"] == 2
    ]
    assert without_pq([glove]) == ["GloVe-100: PQ was not measured at 4 bits."]
    assert all("4 bits" not in sentence for sentence in lost_to_pq([glove]))


def test_peers_ahead_in_recall_at_no_more_bytes_are_stated(results):
    glove = results[0]
    (said,) = ahead_in_recall([glove])
    assert said.startswith("GloVe-100: tqindex mse at 4 bits (54 bytes, 0.838) is behind ")
    assert "faiss PQ (inner product) at 4 bits (50 bytes, 0.843)" in said
    assert "turbovec" in said
    assert "RaBitQ" not in said  # more bytes
    glove.row("turbovec", 4)["bytes"] = 55
    assert "turbovec" not in ahead_in_recall([glove])[0]


def test_peers_ahead_in_speed_are_stated_with_what_they_lose(results):
    search = of_suite(results, "search")[0]
    said = ahead_in_speed([search], ["tqindex-mse"])
    single = next(sentence for sentence in said if "single" in sentence)
    assert "at 2 bits (0.488 ms) is behind faiss PQ fast-scan (2.18 times, missing 0.44 % of its own top 10)" in single
    assert "turbovec (1.11 times)" in single
    batch = next(sentence for sentence in said if "batch" in sentence)
    assert "HNSW" in batch
    assert "turbovec" not in batch


def test_slower_indexing_is_stated(results):
    indexing = of_suite(results, "indexing")[0]
    assert ahead_in_speed([indexing], ["tqindex-mse"]) == []
    (trellis, _) = ahead_in_speed([indexing])
    assert trellis.startswith("GloVe-100, training and adding: tqindex trellis at 2 bits (0.310 s) is behind turbovec")
    indexing.row("turbovec", 2)["add"] = {"median": 0.05, "low": 0.05, "high": 0.05}
    said = ahead_in_speed([indexing], ["tqindex-mse"])
    assert said == ["GloVe-100, training and adding: tqindex mse at 2 bits (0.0550 s) is behind turbovec (1.10 times)."]


def test_indexing_ratio_is_to_the_faster_quantiser(results):
    said = indexing_ratios(of_suite(results, "indexing"))
    assert said[:2] == [
        "GloVe-100, 2 bits: tqindex mse 0.0550 s, PQ 18.5 s, 336 times as long.",
        "GloVe-100, 2 bits: tqindex trellis 0.310 s, PQ 18.5 s, 59.7 times as long.",
    ]
    assert len(said) == 2 * 2 * 2  # sets, widths, kinds of codes


def test_distortion_outside_the_tolerance_is_named(results):
    distortion = of_suite(results, "distortion")
    assert outside_distortion(distortion) == ["All 8 measured distortions are within 2 % of the codebook's own."]
    distortion[0].row("tqindex-mse", 3)["mse"] *= 1.03
    (said,) = outside_distortion(distortion)
    assert said.startswith("1 of 8 ")
    assert "at 3 bits in 128 dimensions" in said


# --- the page ---


def test_losses_come_first(results):
    assert build_sections(results)[0].title == "Where others are ahead"


def test_gaps_are_listed_with_commands(results):
    page = render_markdown(results, "plots")
    assert "| rabitqlib | no wheel for this platform | pip install rabitqlib |" in page
    assert "| glove-200-angular | tqindex bench run recall --set glove-200-angular --size paper |" in page


def test_machine_shows_every_value_that_occurs(results):
    results[0].environment["commit"] = "def5678"
    results[0].environment["dirty"] = True
    table = machine_table(results)
    assert cells(table, "commit", "commit")["measured with"] == "abc1234; def5678"
    assert cells(table, "turbovec", "turbovec")["measured with"] == "-"
    assert results[0].path.name in changed_trees(results)


def test_a_page_of_one_suite_has_no_empty_sections(results):
    page = render_markdown(of_suite(results, "threads"), "plots")
    assert "## Threads" in page
    assert "## Recall" not in page
