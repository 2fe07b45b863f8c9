"""The key convolution and the running mean are the sums that their docstrings state."""

import jax
import numpy as np
import pytest

from subq_jax.model.short_conv import LearnedMean, RunningMean, ShortConvolution


@pytest.mark.parametrize("share", [None, 1.0, 0.25])
def test_each_output_is_the_weighted_sum_of_the_tokens_up_to_it(share):
    kernel = np.asarray(jax.random.normal(jax.random.key(0), (3, 2, 3)))
    if share is None:
        layer = ShortConvolution(2, 3, 3, param_dtype="float32")
        layer.kernel[...] = kernel
    else:
        layer, kernel = RunningMean(2, 3, 3, share), np.full_like(kernel, share / 3)
        kernel[0] += 1 - share
    x = np.asarray(jax.random.normal(jax.random.key(1), (1, 7, 2, 3)))
    segment_ids = np.array([[0, 0, 0, 0, 1, 1, 1]])
    expected = np.zeros_like(x)
    for t in range(7):
        for back in range(3):
            if t - back >= 0 and segment_ids[0, t - back] == segment_ids[0, t]:
                expected[0, t] += kernel[back] * x[0, t - back]
    np.testing.assert_allclose(layer(x, segment_ids=segment_ids), expected, atol=1e-6)


def test_a_document_hears_nothing_of_an_earlier_one_with_its_id():
    layer = RunningMean(1, 1, 5)
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 8, 1, 1)))
    out = layer(x, segment_ids=np.array([[0, 0, 1, -1, 0, 0, 0, 0]]))
    np.testing.assert_array_equal(out[:, 4:], layer(x[:, 4:]))


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_learned_mean_starts_as_the_running_one_and_stays_a_mean(share):
    x = np.asarray(jax.random.uniform(jax.random.key(0), (1, 9, 2, 3)))
    layer = LearnedMean(2, 3, 4, share, param_dtype="float32")
    np.testing.assert_allclose(layer(x), RunningMean(2, 3, 4, share)(x), rtol=1e-5)
    before, layer.kernel[...] = layer(x), layer.kernel[...].at[0, 1, 2].add(100)
    after = layer(x)
    np.testing.assert_allclose(after[..., 1, 2], x[..., 1, 2], rtol=1e-5)  # this channel looks at its own token alone
    changed = np.asarray(after != before).any(axis=(0, 1))
    assert changed[1, 2] and changed.sum() == 1
