"""A layer's keys as a set to search: what comes first is what attention would look at."""

import numpy as np
import pytest
import torch

import tqindex as tq
from tqindex.errors import ArgumentError, VectorError
from tqindex.kv import LayerKeys, TurboQuantCache

HEADS, TOKENS, DIM, PADS = 2, 203, 16, 5


@pytest.fixture(scope="module")
def config(tiny_model):
    return tiny_model("qwen").config


def filled(config, keys, **options):
    cache = TurboQuantCache(config, **{"sinks": 2, "recent": 16, "page": 32, "left_padding": (0, PADS), **options})
    cache.layers[1].update(keys, torch.zeros_like(keys))
    return cache


@pytest.fixture
def keys(gaussian_rows):
    rows = gaussian_rows(2 * HEADS * TOKENS, DIM) + 3 * gaussian_rows(1, DIM, seed=1)
    return torch.from_numpy(rows).reshape(2, HEADS, TOKENS, DIM)


@pytest.mark.parametrize(
    "options", [{}, {"key_bits": 2.5}, {"kind": "prod"}, {"kind": "trellis"}, {"center": False}, {"recent": 1000}]
)
@pytest.mark.parametrize(("row", "head"), [(0, 0), (0, 1), (1, 1)])
def test_scores_are_products_with_what_the_dense_path_reads(config, keys, gaussian_rows, options, row, head):
    cache = filled(config, keys, **options)
    found = LayerKeys(cache, 1, head, row)
    layer = cache.layers[1]
    dense = layer.update(*torch.zeros((2, 2, HEADS, 1, DIM)))[0][row, head, :-1].numpy()
    pads = PADS * row
    queries = gaussian_rows(6, DIM, seed=2)
    expected = queries @ dense[pads:].T
    assert len(found) == TOKENS - pads
    scores, ids = found.search(queries, k=len(found))
    assert ids.min() == pads
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(scores, np.take_along_axis(expected, ids - pads, axis=1), atol=tolerance)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == len(found) for row in ids.tolist())


def test_it_finds_as_many_as_an_index_of_the_same_width(config, keys, gaussian_rows):
    """The same codec, with a mean for every page instead of one for all: no less is found."""
    queries = gaussian_rows(50, DIM, seed=3)
    plain = keys[0, 0].numpy()
    exact = np.argsort(-(queries @ plain.T), axis=1)[:, :10]
    index = tq.Index(DIM, bits=4, metric="ip", center=plain.mean(axis=0))
    index.add(plain)
    shares = [
        np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids.tolist(), exact.tolist(), strict=True)])
        for ids in (LayerKeys(filled(config, keys), 1, 0).search(queries).ids, index.search(queries).ids)
    ]
    assert shares[0] >= shares[1] - 0.02
    assert shares[0] > 0.85


def test_results_have_the_form_of_an_index(config, keys):
    found = LayerKeys(filled(config, keys), 1, 0)
    scores, ids = found.search(np.ones(DIM, np.float32), k=TOKENS + 3)
    assert scores.shape == ids.shape == (TOKENS + 3,)
    assert (ids[-3:] == -1).all()
    assert np.isneginf(scores[-3:]).all()
    assert found.search(np.ones((0, DIM)), k=2).ids.shape == (0, 2)


def test_it_is_what_the_cache_was(config, keys):
    cache = filled(config, keys)
    found = LayerKeys(cache, 1, 0)
    before = found.search(np.ones(DIM), k=20)
    cache.crop(-100)
    cache.layers[1].update(keys[:, :, :90] * 100, keys[:, :, :90])
    np.testing.assert_array_equal(found.search(np.ones(DIM), k=20).ids, before.ids)


@pytest.mark.parametrize(("layer", "head", "row"), [(3, 0, 0), (-1, 0, 0), (1, 2, 0), (1, 0, 2), (2, 0, 0)])
def test_what_is_not_there_is_refused(config, keys, layer, head, row):
    with pytest.raises(ArgumentError):
        LayerKeys(filled(config, keys), layer, head, row)


def test_wrong_queries_are_refused(config, keys, tiny_model):
    found = LayerKeys(filled(config, keys), 1, 0)
    with pytest.raises(VectorError):
        found.search(np.ones(DIM + 1))
    with pytest.raises(VectorError):
        found.search(np.full(DIM, np.nan))
    with pytest.raises(ArgumentError):
        found.search(np.ones(DIM), k=0)
    with pytest.raises(ArgumentError, match="packed"):
        LayerKeys(TurboQuantCache(tiny_model("gemma").config), 0, 0)
