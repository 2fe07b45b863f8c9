"""What a layer of a trained model gives attention to do: its own queries, keys, values and router features on text."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from subq_jax.axes import Keys, Queries, RouterKeys, RouterQueries, Tokens, Values
from subq_jax.data import held_out_stream
from subq_jax.model.attention_modules import SelectiveAttention
from subq_jax.model.decoder import Decoder
from subq_jax.training import train
from subq_jax.training.workdir import finished_config

Inputs = tuple[Queries, Keys, Values, RouterQueries, RouterKeys]


@functools.lru_cache(maxsize=1)
def trained_model(workdir: Path) -> tuple[Decoder, np.ndarray]:
    """The model of a finished run, and the tokens [S] of its held-out documents, one after another.

    Raises:
      ValueError: for a folder without a finished run, or one whose model has no router or whose data is no text.
    """
    config = finished_config(workdir)
    tokens = held_out_stream(config.data)
    model = train(config, workdir, show_progress=False).model
    if not any(isinstance(layer.attention, SelectiveAttention) for layer in model.layers):
        raise ValueError(f"the run in {workdir} must have layers with a router, got {model.config.mechanism!r}")
    return model, tokens


def trained_inputs(workdir: Path, length: int, layer: int) -> Inputs:
    """What a selective layer of a run's model reads of the first `length` held-out tokens, as one document.

    Args:
      workdir: the folder of a finished run.
      length: S, in tokens.
      layer: which of the selective layers, counted from 0, or from the last by -1.

    Returns:
      q [1, S, N, H], k, v [1, S, K, H], router_q, router_k [1, S, K, R].

    Raises:
      ValueError: as `trained_model`, for a layer that there is not, and where the held-out text is too short.
    """
    model, tokens = trained_model(workdir)
    selective = [i for i, each in enumerate(model.layers) if isinstance(each.attention, SelectiveAttention)]
    if not -len(selective) <= layer < len(selective):
        raise ValueError(f"layer must be one of {len(selective)} selective ones, got {layer}")
    if length > len(tokens):
        raise ValueError(f"the held-out text of {workdir} has {len(tokens)} tokens, got length {length}")
    graphdef, params = nnx.split(model)
    return _inputs_of(graphdef, params, jnp.asarray(tokens[None, :length], jnp.int32), selective[layer])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _inputs_of(graphdef, params, tokens: Tokens, number: int) -> Inputs:
    model = nnx.merge(graphdef, params)
    x = model.embed(tokens)
    for layer in model.layers[:number]:
        x = layer(x, phase="sparse", distil=False, decode=False)
    layer = model.layers[number]
    q, k, v = layer.attention.project(layer.attention_norm(x))
    return q, k, v, *layer.attention.route(q, k)
