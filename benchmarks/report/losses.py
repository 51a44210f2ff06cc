"""What the peers do better, in words: a report that left it to the tables would flatter us."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tqindex.bench.report import numbers
from tqindex.bench.report.results import (
    LONG_PQ,
    MAIN,
    OBLIVIOUS,
    PQ,
    TRELLIS,
    Result,
    Row,
    best_pq,
    indexing_seconds,
    is_ours,
    mean,
    median,
)
from tqindex.bench.report.tables import measured_ks

#: How far a measured distortion may lie from the codebook's own, relative to it.
_TOLERANCE = 0.02


class _Timing(NamedTuple):
    """What is timed, how long it takes, and how that is printed."""

    what: str
    seconds: Callable[[Row], float | None]
    printed: Callable[[Row], str]


def lost_to_pq(results: Iterable[Result]) -> list[str]:
    """State, per set and width, at which k our main rows find the nearest less often than PQ at equal bits."""
    return _against_pq(results, PQ, "PQ")


def lost_to_long_pq(results: Iterable[Result]) -> list[str]:
    """State the same of product codes that are as long as ours with their scales and offsets."""
    return _against_pq(results, LONG_PQ, "PQ of as many bytes in all")


def _against_pq(results: Iterable[Result], methods: Sequence[str], name: str) -> list[str]:
    return [
        f"{result.name}, {numbers.width(bits)} bits: {row['label']} is behind {name} at {_where(result, row, methods)}."
        for result in results
        for bits in result.widths()
        for row in _main_rows(result, bits)
        if any(result.row(method, bits) for method in methods)
    ]


def _where(result: Result, row: Row, methods: Sequence[str]) -> str:
    behind = {}
    for k in measured_ks(result):
        ours, pq = mean(row["recall_1_at"].get(k)), best_pq(result, row["bits"], k, methods)
        if ours is not None and pq is not None and pq > ours:
            behind[k] = pq - ours
    if not behind:
        return "no k"
    gap = max(behind.values())
    largest = f"up to {gap:.3f}" if gap >= 0.0005 else "less than 0.001"
    return f"k = {numbers.joined(list(behind))}, by {largest}"


def without_pq(results: Iterable[Result]) -> list[str]:
    """State for which widths there is no PQ to compare with."""
    gaps = []
    for result in results:
        bare = [bits for bits in result.widths() if not any(result.row(method, bits) for method in PQ)]
        if bare:
            gaps.append(f"{result.name}: PQ was not measured at {_list_widths(bare)} bits.")
    return gaps


def _list_widths(widths: Sequence[float]) -> str:
    return numbers.joined([numbers.width(bits) for bits in widths])


def ahead_in_recall(results: Iterable[Result]) -> list[str]:
    """State which peers have a higher recall@10 than our main rows at no more bytes.

    What all vectors share is left out of the bytes, which favours the peers with codebooks.
    """
    sentences = []
    for result in results:
        for row in _all_main_rows(result):
            ours = mean(row["recall_10"])
            ahead = [peer for peer in _no_larger(result, row) if (mean(peer["recall_10"]) or 0.0) > (ours or 0.0)]
            if ahead:
                named = [f"{_named(peer)} ({_size_and_recall(peer)})" for peer in ahead]
                sentences.append(
                    f"{result.name}: {_named(row)} ({_size_and_recall(row)}) is behind {numbers.joined(named)}."
                )
    return sentences


def _no_larger(result: Result, row: Row) -> list[Row]:
    """Return the peers of no more bytes, to the nearest byte: headers make an index longer by less."""
    sized = [peer for peer in _peers(result) if peer["bytes"] is not None]
    return [peer for peer in sized if round(peer["bytes"]) <= round(row["bytes"])]


def _size_and_recall(row: Row) -> str:
    return f"{numbers.size(row['bytes'])} bytes, {mean(row['recall_10']):.3f}"


def ahead_in_speed(results: Iterable[Result], ours: Sequence[str] = MAIN) -> list[str]:
    """State which peers index or search faster than these rows of the same width, and how many times as fast.

    Peers without a width in bits are compared with all of ours.
    """
    return [
        f"{result.name}, {timing.what}: {label} {'; '.join(behind)}."
        for result in results
        for timing in _TIMINGS.get(result.suite, ())
        for label, behind in _behind(result, timing, ours).items()
    ]


def _behind(result: Result, timing: _Timing, ours: Sequence[str]) -> dict[str, list[str]]:
    """Return, by the label of our row, what each width of it is behind."""
    behind: dict[str, list[str]] = {}
    for row in [row for row in _all_main_rows(result) if row["method"] in ours]:
        faster = _faster(result, row, timing.seconds)
        if faster:
            at = f"at {numbers.width(row['bits'])} bits ({timing.printed(row)})"
            behind.setdefault(str(row["label"]), []).append(f"{at} is behind {numbers.joined(faster)}")
    return behind


def _faster(result: Result, row: Row, seconds: Callable[[Row], float | None]) -> list[str]:
    ours = seconds(row)
    named = []
    for peer in _peers(result):
        theirs = seconds(peer)
        comparable = peer["bits"] is None or peer["bits"] == row["bits"]
        if ours and theirs and comparable and theirs < ours:
            named.append(f"{peer['label']} ({numbers.ratio(ours / theirs)} times{_price(peer)})")
    return named


def _price(peer: Row) -> str:
    """Return what the speed costs, where the peer's search misses results that its own codes hold."""
    lost = peer.get("lost")
    return f", missing {numbers.share(lost)} of its own top 10" if lost else ""


def _seconds_per_query(row: Row) -> float | None:
    rate = median(row["batch"])
    return 1 / rate if rate else None


_TIMINGS = {
    "indexing": (
        _Timing("training and adding", indexing_seconds, lambda row: f"{numbers.significant(indexing_seconds(row))} s"),
    ),
    "search": (
        _Timing("batch", _seconds_per_query, lambda row: f"{numbers.significant(median(row['batch']))} queries/s"),
        _Timing(
            "single queries",
            lambda row: median(row["single"]),
            lambda row: f"{numbers.significant(median(row['single']))} ms",
        ),
    ),
}


def indexing_ratios(results: Iterable[Result]) -> list[str]:
    """State how many times as long PQ takes to train and add, per set, width and kind of codes."""
    sentences = []
    for result in results:
        for bits in result.widths():
            rows = [row for method in PQ if (row := result.row(method, bits))]
            times = [seconds for row in rows if (seconds := indexing_seconds(row)) is not None]
            for ours in [row for method in (OBLIVIOUS, TRELLIS) if times and (row := result.row(method, bits))]:
                if own := indexing_seconds(ours):
                    sentences.append(
                        f"{result.name}, {numbers.width(bits)} bits: {ours['label']} {numbers.significant(own)} s, "
                        f"PQ {numbers.significant(min(times))} s, {numbers.ratio(min(times) / own)} times as long."
                    )
    return sentences


def outside_distortion(results: Iterable[Result]) -> list[str]:
    """State whether every measured distortion is within 2 % of the codebook's own."""
    rows = [row for result in results for row in result.rows if row["mse"] is not None and row["mse_bound"]]
    outside = [row for row in rows if abs(row["mse"] / row["mse_bound"] - 1) > _TOLERANCE]
    if not rows:
        return []
    if not outside:
        return [f"All {len(rows)} measured distortions are within 2 % of the codebook's own."]
    named = [f"{row['label']} at {numbers.width(row['bits'])} bits in {row['dim']} dimensions" for row in outside]
    return [
        (
            f"{len(outside)} of {len(rows)} measured distortions are not within 2 % of the codebook's own: "
            f"{numbers.joined(named)}."
        )
    ]


def _main_rows(result: Result, bits: float) -> list[Row]:
    return [row for method in MAIN if (row := result.row(method, bits))]


def _all_main_rows(result: Result) -> list[Row]:
    return [row for bits in result.widths() for row in _main_rows(result, bits)]


def _peers(result: Result) -> list[Row]:
    return [row for row in result.rows if not is_ours(row)]


def _named(row: Row) -> str:
    return str(row["label"]) if row["bits"] is None else f"{row['label']} at {numbers.width(row['bits'])} bits"
