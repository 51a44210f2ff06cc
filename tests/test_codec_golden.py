"""Codes are the committed ones, on this machine and on what pretends to be older ones."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MAKE = Path(__file__).parent / "golden" / "make.py"
#: Features above the baseline that NumPy of either generation can be told not to use; those that this machine
#: lacks, or that the baseline needs, may not be named.
NEWER_FEATURES = {"AVX512F", "AVX512CD", "AVX512_SKX", "AVX512_ICL", "AVX512_SPR", "AVX2", "FMA3", "X86_V3", "X86_V4"}


def load_make() -> Any:
    spec = importlib.util.spec_from_file_location("golden_make", MAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()
CASES = {name: (codec, metric) for name, codec, metric in make.cases()}


@pytest.fixture(scope="module")
def golden() -> dict[str, str]:
    return json.loads(make.STORE.read_text())


def test_every_hash_is_checked(golden: dict[str, str]) -> None:
    assert list(golden) == list(CASES)
    assert len(set(golden.values())) == len(golden)


@pytest.mark.parametrize("name", CASES)
def test_codes_are_the_committed_ones(name: str, golden: dict[str, str]) -> None:
    codec, metric = CASES[name]
    assert make.oracle_hash(codec, metric) == golden[name], "the codec's"
    assert make.kernel_hash(codec, metric) == golden[name], "the kernels'"


def dispatched_features() -> list[str]:
    """Names of the SIMD features that NumPy chose at run time on this machine."""
    multiarray = np._core._multiarray_umath
    features, dispatch = multiarray.__cpu_features__, multiarray.__cpu_dispatch__
    return sorted(name for name in dispatch if features.get(name) and name in NEWER_FEATURES)


@pytest.mark.parametrize(
    "pretence",
    [
        {"OPENBLAS_CORETYPE": "Haswell"},
        {
            "OPENBLAS_CORETYPE": "Prescott",
            "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched_features()),
            "NUMBA_CPU_NAME": "generic",
        },
    ],
    ids=["older BLAS", "oldest of all"],
)
def test_codes_do_not_depend_on_the_processor(
    pretence: dict[str, str], golden: dict[str, str], run_python: Any
) -> None:
    # Numba keeps kernels per processor, so that another's are compiled anew.
    printed = run_python(str(MAKE), OPENBLAS_NUM_THREADS="1", **pretence)
    assert json.loads(printed) == golden
