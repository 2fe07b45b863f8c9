"""One training step on one device and on meshes of eight: run by `test_eight_devices.py` in a process of its own."""

import jax
import numpy as np
import optax
from flax import nnx

from subq_jax.data import make_train_iterator
from subq_jax.model.config import DecoderConfig
from subq_jax.model.decoder import Decoder
from subq_jax.parallel import parse_mesh, put_batch
from subq_jax.training.step import abstract_state, make_train_step

MODEL = DecoderConfig(
    vocab_size=128,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=32,
    local_window=8,
    budget=16,
    block_size=4,
    sink_blocks=1,
    local_blocks=1,
    router_dim=4,
    dtype="float32",
)
DATA = dict(task="mqar", seq_len=32, batch_size=8, vocab_size=128, num_pairs=4, num_queries=4)


def step_under(mesh):
    """The loss, its gradient, and the parameters' shardings."""
    sgd = optax.sgd(1.0)  # at this rate the change of a parameter is its gradient
    graphdef, abstract, init = abstract_state(lambda: Decoder(MODEL, rngs=nnx.Rngs(0)), sgd, mesh)
    before = init()
    weights = [np.asarray(x) for x in jax.tree.leaves(before.params)]
    batch = put_batch(next(make_train_iterator(DATA, seed=0, block_size=MODEL.block_size)), mesh)
    take_step = make_train_step(graphdef, sgd, abstract, mesh, packed=False)
    after, metrics = take_step(before, batch, "sparse")
    gradients = [w - np.asarray(x) for w, x in zip(weights, jax.tree.leaves(after.params), strict=True)]
    return float(metrics.loss), weights, gradients, [x.sharding for x in jax.tree.leaves(after.params)]


def main():
    assert jax.device_count() == 8
    loss, weights, gradients, _ = step_under(parse_mesh("", devices=jax.devices()[:1]))
    assert all(np.abs(g).max() > 0 for g in gradients), "a gradient is zero throughout: the comparison shows nothing"
    for spec in ("data:2,fsdp:4", "data:2,fsdp:2,tensor:2"):
        sharded_loss, sharded_weights, sharded_gradients, shardings = step_under(parse_mesh(spec))
        split = sum(not sharding.is_fully_replicated for sharding in shardings)
        assert split >= len(shardings) // 2, f"{spec}: only {split} of {len(shardings)} parameters are sharded"
        for one, other in zip(weights, sharded_weights, strict=True):
            np.testing.assert_array_equal(one, other)
        worst = max(np.abs(a - b).max() for a, b in zip(gradients, sharded_gradients, strict=True))
        assert abs(loss - sharded_loss) < 1e-5, f"{spec}: loss {sharded_loss} instead of {loss}"
        assert worst < 1e-5, f"{spec}: a gradient differs by {worst}"
        print(f"{spec}: loss differs by {abs(loss - sharded_loss):.1e}, gradients by at most {worst:.1e}")


if __name__ == "__main__":
    main()
