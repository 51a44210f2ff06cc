"""The command `tqindex kv`. What it needs of the extra `kv` is imported when a command runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tqindex.kv.evaluate import Fidelity


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"this needs the package {error.name}: pip install 'tqindex[kv,bench]'"
            ) from error


@click.group(cls=_Group)
def kv() -> None:
    """Measure and size a language model's KV cache in tqindex codes."""


_presets = click.option(
    "--preset",
    "presets",
    multiple=True,
    metavar="KEY/VALUE",
    help="Bits of keys and values, such as 4/3, and more words ('4/4 trellis recent=32'); may be given several times.",
)
_sinks = click.option("--sinks", type=int, default=4, show_default=True, help="First tokens that stay exact.")
_recent = click.option("--recent", type=int, default=128, show_default=True, help="Last tokens that are exact.")
_page = click.option("--page", type=int, default=64, show_default=True, help="Tokens that are packed together.")
_threads = click.option("--threads", type=int, help="Threads of torch; default: its own choice.")
_dtype = click.option(
    "--dtype", default="float32", show_default=True, help="Of the model: float32, bfloat16 or float16."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@kv.command("memory")
@click.argument("config")
@click.option("--context", type=int, required=True, help="Tokens of each sequence.")
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences.")
@_presets
@_sinks
@_recent
@_page
@_json
def memory_command(
    config: str, context: int, batch: int, presets: tuple[str, ...], as_json: bool, **windows: Any
) -> None:
    """Show the bytes of a KV cache in 16 bits and packed, without any weights.

    CONFIG is a model's folder, its config.json, or its name on the Hub. Grouped heads, layer types, norms, means and
    exact windows are counted; the fixed state of linear attention is not.
    """
    from tqindex.kv.memory import estimate_memory, layer_shapes, read_config
    from tqindex.kv.options import LayerOptions
    from tqindex.kv.presets import PRESETS, parse_preset

    shapes, base = layer_shapes(read_config(config)), LayerOptions(**windows)
    sizes = {name: estimate_memory(shapes, parse_preset(name, base), context, batch) for name in presets or PRESETS}
    dense = next(iter(sizes.values())).dense
    if as_json:
        rows = [{"preset": name, "total": size.total, "bits": size.bits, **size.parts} for name, size in sizes.items()]
        click.echo(json.dumps({"context": context, "batch": batch, "dense": dense, "presets": rows}))
        return
    packed = sum(shape.packed for shape in shapes)
    click.echo(f"layers    {len(shapes)}, of which {packed} are packed; the others stay as they are")
    click.echo(f"tokens    {context:,} in each of {batch:,} sequences")
    click.echo(f"16 bits   {_megabytes(dense)} MB")
    rows_of_text = [
        [name, *map(_megabytes, (*size.parts.values(), size.total))]
        + [f"{number:.2f}" for number in (dense / size.total, size.page_bits, size.bits)]
        for name, size in sizes.items()
    ]
    parts = next(iter(sizes.values())).parts
    print_table(["preset", *parts, "total MB", "x smaller", "bits in pages", "bits in all"], rows_of_text)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text, however narrow the terminal is."""
    table = Table(title=None, box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 200).print(table)


def check_file(path: Path) -> None:
    """Refuse a file that is not there."""
    if not path.is_file():
        raise click.ClickException(f"{path}: no such file")


@kv.command("eval")
@click.argument("model")
@click.option("--text", type=click.Path(path_type=Path), required=True, help="A file of text in UTF-8.")
@click.option("--prefix", type=int, default=2048, show_default=True, help="Tokens that are read first.")
@click.option("--tokens", type=int, default=256, show_default=True, help="Tokens that are then fed.")
@click.option("--step", type=int, default=1, show_default=True, help="Tokens that are fed at once.")
@click.option("--block", type=int, help="Read the prefix in blocks of so many tokens; default: at once.")
@_presets
@click.option("--peers/--no-peers", default=True, help="Also transformers' QuantizedCache, where it can be had.")
@_threads
@_dtype
@_json
def eval_command(
    model: str,
    text: Path,
    prefix: int,
    tokens: int,
    step: int,
    block: int | None,
    presets: tuple[str, ...],
    peers: bool,
    threads: int | None,
    dtype: str,
    as_json: bool,
) -> None:
    """Measure how far packed caches move MODEL's predictions on a text.

    MODEL is a folder, or a name on the Hub. After the prefix the text is fed token by token, and every prediction is
    compared with that of the uncompressed cache: KL divergence (nats), most probable token, perplexity, outputs of the
    attention; with bytes held at the end, the rise of memory over the prefix, and tokens per second.
    """
    from tqindex.kv.cases import parse_case, present_peers
    from tqindex.kv.evaluate import evaluate
    from tqindex.kv.models import encode_file, load_model
    from tqindex.kv.presets import PRESETS

    cases = [parse_case(name) for name in presets or PRESETS]
    check_file(text)
    loaded, tokenizer = load_model(model, dtype, threads)
    if peers:
        cases += present_peers(loaded.config)
    ids = encode_file(tokenizer, text)
    found = list(evaluate(loaded, ids, cases, prefix, tokens, block, step))
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
        return
    click.echo(f"tokens    {prefix:,} read, {tokens:,} fed, {len(ids):,} in the text; {loaded.dtype}")
    names = (
        "cache",
        "KL divergence",
        "top-1",
        "perplexity",
        "attention error",
        "bits",
        "held MB",
        "peak MB",
        "tokens/s",
    )
    print_table(names, [_eval_row(one) for one in found])


def _eval_row(one: "Fidelity") -> list[str]:
    peak = "-" if one.peak is None else _megabytes(one.peak)
    return [
        one.name,
        f"{one.divergence:.4f} ±{one.divergence_error:.4f}",
        f"{one.top1:.3f}",
        f"{one.perplexity:.3f}",
        f"{one.attention_error:.4f}",
        f"{one.bits:.2f}",
        _megabytes(one.held),
        peak,
        f"{one.tokens_per_second:.1f}",
    ]


@kv.command("needle")
@click.argument("model")
@click.option("--text", type=click.Path(path_type=Path), required=True, help="The text it is hidden in, in UTF-8.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Heat map, a PNG file.")
@click.option("--lengths", default="512,1024,2048,4096,8192", show_default=True, help="Tokens of the prompts.")
@click.option("--depths", type=int, default=5, show_default=True, help="Places from the beginning to the end.")
@_presets
@_threads
@_dtype
@_json
def needle_command(
    model: str,
    text: Path,
    output: Path,
    lengths: str,
    depths: int,
    presets: tuple[str, ...],
    threads: int | None,
    dtype: str,
    as_json: bool,
) -> None:
    """Hide a sentence in a text at depths and lengths, and draw where MODEL finds it with each cache."""
    from tqindex.checks import check_integer
    from tqindex.kv.cases import DENSE, parse_case
    from tqindex.kv.models import load_model
    from tqindex.kv.needle import draw_heat_map, is_found, make_haystacks
    from tqindex.storage.files import check_file_target

    check_file(text)
    check_file_target(output)
    cases = [DENSE, *(parse_case(name) for name in presets or ("4/4",))]
    places = [i / max(depths - 1, 1) for i in range(check_integer("--depths", depths, 1))]
    loaded, tokenizer = load_model(model, dtype, threads)
    haystacks = make_haystacks(tokenizer, text.read_text(encoding="utf-8"), _integers(lengths), places)
    found = {
        case.name: {(hay.length, hay.depth): is_found(loaded, tokenizer, hay, case) for hay in haystacks}
        for case in cases
    }
    draw_heat_map(output, found)
    if as_json:
        cells = {name: [[*cell, hit] for cell, hit in grid.items()] for name, grid in found.items()}
        click.echo(json.dumps(cells))
        return
    for name, grid in found.items():
        lost = [cell for cell, hit in grid.items() if found[DENSE.name][cell] and not hit]
        click.echo(
            f"{name:<16} found {sum(grid.values())} of {len(grid)}; of those of the dense cache it lost {len(lost)}"
        )
    click.echo(f"written   {click.format_filename(output)}")


def _integers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise click.ClickException(f"--lengths must be integers with commas between them, got {text!r}") from error
