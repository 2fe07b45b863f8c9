"""What trees and sketches find of flat's choice, and what they cost."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_decoder import SHAPE, decoder

from subq_jax.evaluation import SketchSearch, TreeSearch, routing_statistics, search, search_statistics
from subq_jax.selection.sketch import fit_sketch

TREES = [TreeSearch((2, 2), 1), TreeSearch((4,), 1), TreeSearch((2,), 4), TreeSearch((2, 2), 16)]


def tokens(seed=0):
    return jax.random.randint(jax.random.key(seed), (2, 128), 0, SHAPE["vocab_size"])


def test_many_trees_find_what_each_finds_as_the_models_own():
    model = decoder("selective", budget=16, num_layers=1, layer_pattern=("selective",))
    found = search_statistics(model, tokens(), TREES)
    for tree, stats in zip(TREES, found, strict=True):
        own = nnx.clone(model)
        attention = own.layers[0].attention
        attention.selection = dataclasses.replace(attention.selection, **tree._asdict())
        expected = routing_statistics(own, tokens())
        assert stats["recall"] == pytest.approx(expected["tree_recall"], abs=1e-6)
        assert stats["certified"] == pytest.approx(expected["certified"], abs=1e-6)
    assert 0.3 < found[0]["recall"] < found[2]["recall"] < 1
    assert found[0]["weight_recall"] != found[0]["recall"]


def test_a_beam_or_a_sketch_of_everything_finds_everything_and_costs_more_than_flat():
    model = decoder("selective", budget=16)
    everything = [TreeSearch((2, 2), 16), SketchSearch(model.config.router_dim, 4), SketchSearch(1, 32)]
    for found in search_statistics(model, tokens(), everything, fitted_to=tokens(1)):
        assert found["recall"] == 1 and found["weight_recall"] == pytest.approx(1)
        assert found["cost"] > 1


def test_wider_sketches_and_more_kept_blocks_find_more():
    searches = [SketchSearch(1, 2), SketchSearch(1, 8), SketchSearch(4, 8)]
    model = decoder("selective", budget=16, router_dim=16)
    few, kept, wide = (stats["recall"] for stats in
                       search_statistics(model, tokens(), searches, fitted_to=tokens(1)))
    assert 0 < few < kept < wide <= 1


def test_costs_count_the_top_level_and_the_children_of_what_is_kept():
    model = decoder("selective", budget=16)
    searches = [TreeSearch((4,), 2), TreeSearch((4, 2), 1), SketchSearch(2, 8)]
    costs = [stats["cost"] for stats in search_statistics(model, tokens(), searches, fitted_to=tokens(1))]
    blocks = 32
    sketch = 2 / blocks + 2 / model.config.router_dim + 8 / blocks  # of mapping the query, scoring roughly, and in full
    assert costs == [(8 + 4 * 4) / blocks, (4 + 3 * 2 + 3 * 4) / blocks, sketch]


def test_sketches_are_fitted_to_the_other_sequences_alone(monkeypatch):
    seen = []
    fit = lambda *inputs: seen.append(inputs) or fit_sketch(*inputs)
    monkeypatch.setattr(search, "fit_sketch", fit)
    model = decoder("selective", budget=16, num_layers=1, layer_pattern=("selective",))
    for tested, others in ((0, 1), (2, 1), (0, 2)):
        search_statistics(model, tokens(tested), [SketchSearch(2, 8)], fitted_to=tokens(others))
    (first, _), (same, _), (other, _) = ((x[1], x[0]) for x in seen)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_no_tree_at_all_is_flat():
    (found,) = search_statistics(decoder("selective", budget=16), tokens(), [TreeSearch((), 32)])
    assert found["recall"] == found["certified"] == found["cost"] == 1


@pytest.mark.parametrize(
    ("search", "fitted_to", "message"),
    [
        (TreeSearch((2,), 0), None, "beam_width must be an integer >= 1, got 0"),
        (SketchSearch(0, 8), tokens(1), "a sketch must have rank >= 1 and keep >= num_blocks=2"),
        (SketchSearch(2, 1), tokens(1), "a sketch must have rank >= 1 and keep >= num_blocks=2"),
        (SketchSearch(99, 8), tokens(1), r"rank must be in \[1, "),
        (SketchSearch(2, 8), None, "fitted_to must hold the sequences that sketches are fitted to"),
    ],
)
def test_a_search_that_cannot_be_is_refused(search, fitted_to, message):
    with pytest.raises(ValueError, match=message):
        search_statistics(decoder("selective", budget=16), tokens(), [search], fitted_to)


def test_a_model_without_a_router_and_sequences_without_a_choice_are_refused():
    with pytest.raises(ValueError, match="tokens must be long enough to have blocks to choose from, got length 6"):
        search_statistics(decoder("selective"), tokens()[:, :6], TREES)
    with pytest.raises(ValueError, match="num_runs must be an integer >= 1, got 0"):
        search_statistics(decoder("selective"), tokens(), TREES, num_runs=0)
    with pytest.raises(ValueError, match="model must have layers with a router, got mechanism='dense'"):
        search_statistics(decoder("dense"), tokens(), TREES)
