"""The statistics of routers against counts made one query at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_decoder import SHAPE, decoder

from subq_jax.evaluation import routing
from subq_jax.evaluation.routing import _union, held_out_routing, routing_statistics

LENGTH = 64
ONE_LAYER = {"num_layers": 1, "layer_pattern": ("selective",)}


def tokens(batch=2):
    return jax.random.randint(jax.random.key(0), (batch, LENGTH), 0, SHAPE["vocab_size"])


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def by_hand(model, tokens):
    """The statistics of a model of one layer, of the 32 queries of the second half, in float64."""
    attention, config = model.layers[0].attention, model.config
    q, k, _ = attention.project(model.layers[0].attention_norm(model.embed(tokens)))
    router_q, router_k = (np.asarray(x, np.float64) for x in attention.route(q, k))
    q, k = (np.asarray(x, np.float64) for x in (q, k))
    wanted = config.budget // 4 - 2
    sums = dict.fromkeys(("visible", "candidates", "chosen", "best", "common", "count", "gated"), 0.0)
    gates, queries = [], 0
    for row in range(tokens.shape[0]):
        for head in range(config.num_kv_heads):
            for t in range(LENGTH // 2, LENGTH):
                own, blocks = t // 4, np.arange(t + 1) // 4
                group = q[row, t, head * 2 : head * 2 + 2]
                logits = group @ k[row, : t + 1, head].T / 8**0.5
                mass = np.bincount(blocks, softmax(logits).mean(axis=0))
                candidates = np.arange(1, own)
                scores = np.array([router_q[row, t, head] @ router_k[row, 4 * b : 4 * b + 4, head].max(axis=0) / 2
                                   for b in candidates])
                chosen = candidates[np.argsort(-scores, kind="stable")[:wanted]]
                best = candidates[np.argsort(-mass[candidates], kind="stable")[:wanted]]
                seen = np.isin(blocks, [0, own, *chosen])
                bias = np.array([scores[b - 1] if b in chosen else 0.0 for b in blocks])
                gated = softmax(np.where(seen, logits + bias, -np.inf)).mean(axis=0)
                queries += 1
                gates += [scores[b - 1] for b in chosen]
                for name, value in (("visible", mass[np.unique(blocks[seen])].sum()), ("chosen", mass[chosen].sum()),
                                    ("candidates", mass[candidates].sum()), ("best", mass[best].sum()),
                                    ("common", len(set(chosen) & set(best))), ("count", len(chosen)),
                                    ("gated", gated[np.isin(blocks, chosen)].sum())):
                    sums[name] += value
    return {
        "dense_weight_visible": sums["visible"] / queries, "candidate_weight": sums["candidates"] / queries,
        "weight_recall": sums["chosen"] / sums["candidates"], "best_weight_recall": sums["best"] / sums["candidates"],
        "block_recall": sums["common"] / sums["count"], "chosen_weight": sums["gated"] / queries,
        "gate_mean": np.mean(gates), "gate_p99": np.percentile(gates, 99), "tree_recall": 1.0, "certified": 1.0}


@pytest.mark.parametrize("router_window", [1, 3])
def test_statistics_equal_a_count_query_by_query(router_window):
    model = decoder("selective", budget=20, router_window=router_window, **ONE_LAYER)
    found = routing_statistics(model, tokens())
    for name, value in by_hand(model, tokens()).items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    assert found["weight_recall"] < found["best_weight_recall"] < 1


def test_a_budget_of_everything_misses_nothing():
    found = routing_statistics(decoder("selective", budget=4 * 18), tokens())
    for name in ("dense_weight_visible", "weight_recall", "best_weight_recall", "block_recall", "tree_recall"):
        assert found[name] == pytest.approx(1, abs=1e-5), name
    assert found["union_16"] < 1.3  # neighbours differ by the blocks that are not yet candidates alone


def test_a_narrow_beam_finds_part_of_flats_choice():
    model = nnx.clone(decoder("selective", budget=16, **ONE_LAYER))
    attention = model.layers[0].attention
    attention.selection = dataclasses.replace(attention.selection, fanouts=(2, 2), beam_width=1)
    found = routing_statistics(model, tokens())
    assert 0.3 < found["tree_recall"] < 1
    assert 0 <= found["certified"] <= found["tree_recall"]
    attention.selection = dataclasses.replace(attention.selection, beam_width=16)
    found = routing_statistics(model, tokens())
    assert found["tree_recall"] == found["certified"] == 1


def test_unions_count_distinct_blocks():
    ids = jnp.array([[1, 2], [1, 2], [2, 3], [4, -1], [5, 6], [5, 6], [5, 6], [5, 6]])[None, :, None]
    assert _union(ids, 4) == pytest.approx(4 * (4 + 2) / 15)
    assert _union(ids, 8) == pytest.approx(8 * 6 / 15)


def test_router_queries_that_are_means_over_neighbours_choose_alike():
    unions = [routing_statistics(decoder("selective", budget=16, router_window=width), tokens())["union_8"]
              for width in (1, 4, 16)]
    assert unions[0] > unions[1] > unions[2]


def test_text_is_judged_by_rows_that_one_document_fills(monkeypatch):
    rows = np.asarray(tokens(batch=4)).reshape(2, 2, LENGTH)
    segment_ids = np.zeros_like(rows)
    segment_ids[0, 0, 40:], segment_ids[0, 1, 60:] = 1, -1  # two documents, and one that ends in padding
    batches = [{"inputs": row, "segment_ids": ids} for row, ids in zip(rows, segment_ids, strict=True)]
    monkeypatch.setattr(routing, "make_eval_batches", lambda *args, num_batches, **sizes: batches[:num_batches])
    model = decoder("selective", budget=20, **ONE_LAYER)
    data = dict(task="text", seq_len=LENGTH, batch_size=2)
    found = held_out_routing(model, data, length=LENGTH, batch_size=2, seed=0)
    expected = {f"routing_{name}": value for name, value in routing_statistics(model, rows[1]).items()}
    of_a_tree = {"routing_tree_recall", "routing_certified"}
    assert found == {name: value for name, value in expected.items() if name not in of_a_tree}
    searching = decoder("selective", budget=20, fanouts=(2,), beam_width=4, **ONE_LAYER)
    assert of_a_tree < set(held_out_routing(searching, data, length=LENGTH, batch_size=2, seed=0))
    assert held_out_routing(model, data, length=LENGTH, batch_size=3, seed=0) != found
    assert held_out_routing(decoder("dense"), data, length=LENGTH, batch_size=2, seed=0) == {}


def test_a_model_without_a_router_is_refused():
    with pytest.raises(ValueError, match="model must have layers with a router, got mechanism='dense'"):
        routing_statistics(decoder("dense"), tokens())
