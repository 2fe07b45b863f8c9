"""The router's features are what its docstring promises."""

import jax
import numpy as np
from flax import nnx

from subq_jax.model.router import TiedRouter


def test_features_are_nonnegative_and_the_last_channel_shifts():
    router = TiedRouter(2, 8, 6, 4, param_dtype="float32", rngs=nnx.Rngs(0))
    q, k = (np.asarray(jax.random.normal(jax.random.key(i), (1, 5, n, 8))) for i, n in ((0, 4), (1, 2)))
    router_q, router_k = (np.asarray(x) for x in router(q, k))
    kernel, center = (np.asarray(x[...]) for x in (router.kernel, router.center))
    features = lambda x, head: np.log1p(np.exp(x @ kernel[head]))
    for head in range(2):
        mean = (features(q[:, :, 2 * head], head) + features(q[:, :, 2 * head + 1], head)) / 2
        np.testing.assert_allclose(router_q[:, :, head, :-1], mean, rtol=1e-5)
        np.testing.assert_allclose(router_q[:, :, head, -1], -mean @ center[head], rtol=1e-5)
        np.testing.assert_allclose(router_k[:, :, head, :-1], features(k[:, :, head], head), rtol=1e-5)
    assert (router_q[..., :-1] >= 0).all() and (router_k[..., -1] == 1).all()
