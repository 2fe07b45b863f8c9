"""What trees find of flat's choice, against the statistics of a model that has the tree itself."""

import dataclasses

import jax
import pytest
from flax import nnx
from tiny_decoder import SHAPE, decoder

from subq_jax import SelectionConfig
from subq_jax.evaluation import routing_statistics, tree_statistics
from subq_jax.evaluation.tree_search import scored_share

TREES = [((2, 2), 1), ((4,), 1), ((2,), 4), ((2, 2), 16)]


def tokens():
    return jax.random.randint(jax.random.key(0), (2, 128), 0, SHAPE["vocab_size"])


def test_many_trees_find_what_each_finds_as_the_models_own():
    model = decoder("selective", budget=16, num_layers=1, layer_pattern=("selective",))
    found = tree_statistics(model, tokens(), TREES)
    for (fanouts, beam), stats in zip(TREES, found, strict=True):
        own = nnx.clone(model)
        attention = own.layers[0].attention
        attention.selection = dataclasses.replace(attention.selection, fanouts=fanouts, beam_width=beam)
        expected = routing_statistics(own, tokens())
        assert stats["recall"] == pytest.approx(expected["tree_recall"], abs=1e-6)
        assert stats["certified"] == pytest.approx(expected["certified"], abs=1e-6)
    assert 0.3 < found[0]["recall"] < found[2]["recall"] < 1
    assert found[0]["weight_recall"] != found[0]["recall"]


def test_a_beam_of_everything_finds_everything_and_scores_more_than_flat():
    (found,) = tree_statistics(decoder("selective", budget=16), tokens(), [((2, 2), 16)])
    assert found["recall"] == found["certified"] == 1 and found["weight_recall"] == pytest.approx(1)
    assert found["scored"] > 1


def test_scored_summaries_are_the_top_level_and_the_children_of_what_is_kept():
    config = SelectionConfig(num_blocks=4, fanouts=(4, 8), beam_width=10)
    assert scored_share(config, 3200) == (100 + 12 * 8 + 12 * 4) / 3200
    assert scored_share(dataclasses.replace(config, fanouts=(4,)), 3200) == (800 + 12 * 4) / 3200


def test_no_tree_at_all_is_flat():
    (found,) = tree_statistics(decoder("selective", budget=16), tokens(), [((), 32)])
    assert found["recall"] == found["certified"] == found["scored"] == 1


def test_what_has_no_router_or_no_room_is_refused():
    with pytest.raises(ValueError, match="tokens must be long enough to have blocks to choose from, got length 6"):
        tree_statistics(decoder("selective"), tokens()[:, :6], TREES)
    with pytest.raises(ValueError, match="num_runs must be an integer >= 1, got 0"):
        tree_statistics(decoder("selective"), tokens(), TREES, num_runs=0)
    with pytest.raises(ValueError, match="model must have layers with a router, got mechanism='dense'"):
        tree_statistics(decoder("dense"), tokens(), TREES)
    with pytest.raises(ValueError, match="beam_width must be an integer >= 1, got 0"):
        tree_statistics(decoder("selective"), tokens(), [((2,), 0)])
