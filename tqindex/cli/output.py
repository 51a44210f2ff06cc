"""What commands print."""

import json
import math
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tqindex.cli.build import Built
from tqindex.cli.changes import Added
from tqindex.index import Index, SearchResult
from tqindex.readers import VectorFile
from tqindex.readers.truth import Recall
from tqindex.storage import Verification

#: Queries that the table shows; --json and --output give all.
_SHOWN_QUERIES = 5
_SHOWN_HITS = 10


def print_build(target: Path, vectors: VectorFile, built: Built) -> None:
    """Say what was built, from what, its size and the rate."""
    info = built.index.info()
    n, dim = vectors.shape
    center = f"centred on the mean of {built.center_rows:,} rows" if built.center_rows else "not centred"
    source = click.format_filename(vectors.path) + (f" [{vectors.name}]" if vectors.name else "")
    size, original = info["bytes_per_vector"], info["float32_bytes_per_vector"]
    click.echo(f"built     {click.format_filename(target)} from {source}")
    click.echo(f"vectors   {n:,} x {dim}, metric {info['metric']}, {_codec(info)}, {center}")
    ratio = f"{original / size:.1f} x smaller" if size <= original else f"{size / original:.1f} x larger"
    click.echo(f"size      {size:.1f} bytes per vector, float32 has {original}: {ratio}")
    _print_rate(n, "vectors", built.seconds, info["device"])


def _print_rate(n: int, what: str, seconds: float, device: str) -> None:
    where = "" if device == "cpu" else f" on {device}"
    click.echo(f"rate      {n / seconds:,.0f} {what}/s{where} ({seconds:.2f} s, kernel compilation not counted)")


def _codec(info: dict[str, Any]) -> str:
    sketch = f" ({info['sketch']} sketch)" if info["sketch"] else ""
    paper = ", paper's scale" if info["scale"] == "paper" else ""
    effort = ", effort search" if info["effort"] == "search" else ""
    return f"{info['codec']}{sketch} {info['bits']} bits{paper}{effort}"


def print_added(path: Path, vectors: VectorFile, index: Index, added: Added, names: str | None) -> None:
    """Say what was added, under which ids, and the rate."""
    n = len(added.ids)
    source = click.format_filename(vectors.path) + (f" [{vectors.name}]" if vectors.name else "")
    click.echo(f"added     {n:,} vectors from {source} to {click.format_filename(path)}")
    click.echo(f"ids       {f'{added.ids[0]} to {added.ids[-1]}' if names is None else f'from {names}'}")
    click.echo(f"vectors   {len(index):,} x {index.dim}")
    _print_rate(n, "vectors", added.seconds, index.device)


def print_removed(path: Path, n: int, info: dict[str, Any]) -> None:
    """Say how many vectors were removed and how many are left."""
    click.echo(f"removed   {n:,} vectors from {click.format_filename(path)}")
    click.echo(f"vectors   {info['n']:,} x {info['dim']}")
    click.echo(f"to free   {_removed(info)}")


def _removed(info: dict[str, Any]) -> str:
    return f"{info['removed']:,} removed vectors take {info['removed_bytes']:,} bytes until `tqindex compact`"


def print_compacted(path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Say what compaction brought."""
    click.echo(f"compacted {click.format_filename(path)}: {before['removed']:,} removed vectors dropped")
    click.echo(f"vectors   {after['n']:,} x {after['dim']}")
    click.echo(f"segments  {after['segments']:,}, before {before['segments']:,}")
    click.echo(f"total     {after['total_bytes']:,} bytes, before {before['total_bytes']:,}")


def print_hits(
    result: SearchResult, metric: str, recall: Recall, seconds: float, device: str, target: Path | None
) -> None:
    """Print the first queries' hits as a table, then recall and rate."""
    nq, k = result.ids.shape
    table = Table(title=None, box=None, pad_edge=False)
    for name in ("query", "rank", "id", "squared distance" if metric == "l2" else "score"):
        table.add_column(name, justify="right")
    for query in range(min(nq, _SHOWN_QUERIES) if target is None else 0):
        for rank in range(min(k, _SHOWN_HITS)):
            row_id, score = int(result.ids[query, rank]), float(result.scores[query, rank])
            if row_id < 0:  # k exceeds the number of vectors
                break
            table.add_row(str(query), str(rank + 1), str(row_id), f"{score:.6g}")
    if table.rows:
        Console().print(table)
        if nq > _SHOWN_QUERIES or k > _SHOWN_HITS:
            click.echo(f"... of {nq:,} queries with {k:,} hits each; --json and --output give all")
    elif target is not None:
        click.echo(f"written   {click.format_filename(target)}: ids and scores of {nq:,} queries with {k:,} hits each")
    if recall.value is None:
        click.echo(f"recall    not known: {recall.why}")
    else:
        click.echo(f"{f'recall@{recall.k}':<9} {recall.value:.4f} ({recall.why})")
    _print_rate(nq, "queries", seconds, device)


def print_hits_json(result: SearchResult, metric: str, recall: Recall, seconds: float, device: str) -> None:
    """Print all hits as one JSON object; a missing hit has id -1 and score null."""
    hits = {
        "k": result.ids.shape[1],
        "metric": metric,
        "ids": result.ids.tolist(),
        "scores": [[s if math.isfinite(s) else None for s in row] for row in result.scores.tolist()],
        "recall": recall.value,
        "recall_k": recall.k,
        "recall_by": recall.why,
        "queries_per_second": len(result.ids) / seconds,
        "device": device,
    }
    click.echo(json.dumps(hits))


def print_info(path: Path, info: dict[str, Any], as_json: bool) -> None:
    """Print what an index holds."""
    if as_json:
        click.echo(json.dumps({"path": str(path), **info}))
        return
    n, total = info["n"], info["total_bytes"]
    center = "centred" if info["centered"] else "not centred"
    click.echo(f"index     {click.format_filename(path)}, format version {info['format_version']}")
    click.echo(f"vectors   {n:,} x {info['dim']}, metric {info['metric']}, {_codec(info)}, {center}")
    if info["removed"]:
        click.echo(f"to free   {_removed(info)}")
    click.echo(f"rotation  {info['rotation']}, seed {info['seed']}")
    click.echo(f"codes     {info['code_bytes']:,} bytes")
    click.echo(f"sides     {info['side_bytes']:,} bytes")
    click.echo(f"ids       {info['id_bytes']:,} bytes")
    if info["original_bytes"]:
        click.echo(f"originals {info['original_bytes']:,} bytes")
    if info["original_bytes"]:
        click.echo(f"originals {info['original_bytes']:,} bytes")
    per_vector = f", {total / n:.1f} per vector; float32 has {info['float32_bytes_per_vector']}" if n else ""
    click.echo(f"total     {total:,} bytes{per_vector}")
    click.echo(f"segments  {info['segments']}")
    click.echo(f"scan      {info['scan']}")
    click.echo(f"kernels   {info['simd']}, {info['threads']} threads, cache {info['kernel_cache'] or 'none'}")


def print_verified(path: Path, found: Verification) -> None:
    """Say that an index is sound, and what was checked."""
    click.echo(f"ok        {click.format_filename(path)}: manifest, checksums and ids are sound")
    click.echo(f"vectors   {found.manifest.n:,}")
    click.echo(f"files     {found.files}, {found.bytes:,} bytes")
