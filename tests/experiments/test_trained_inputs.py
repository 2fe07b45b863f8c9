"""What a trained layer gives attention to do, as the benchmark takes it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from programs import program
from tiny_decoder import SHAPE, decoder

from experiments import trained_inputs
from subq_jax import selective_attention
from subq_jax.data import held_out_stream

FOUR_LAYERS = {"num_layers": 4, "layer_pattern": ("local", "selective")}
TOKENS = np.random.default_rng(0).integers(SHAPE["vocab_size"], size=50)


@pytest.fixture
def model(monkeypatch):
    model = decoder("selective", **FOUR_LAYERS)
    monkeypatch.setattr(trained_inputs, "trained_model", lambda workdir: (model, TOKENS))
    return model


@pytest.mark.parametrize(("layer", "number"), [
    pytest.param(0, 1, marks=pytest.mark.slow), pytest.param(1, 3, marks=pytest.mark.slow), (-1, 3)])
def test_attention_to_the_inputs_of_a_layer_is_the_layers_own(model, layer, number):
    inputs = trained_inputs.trained_inputs(Path("run"), 40, layer)
    assert [x.shape for x in inputs] == [(1, 40, n, w) for n, w in ((4, 8), (2, 8), (2, 8), (2, 4), (2, 4))]
    x = model.embed(jnp.asarray(TOKENS[None, :40]))
    for before in model.layers[:number]:
        x = before(x, phase="sparse", distil=False, decode=False)
    attention = model.layers[number].attention
    out = attention.out(selective_attention(*inputs, attention.selection))
    np.testing.assert_allclose(out, attention(model.layers[number].attention_norm(x)), rtol=1e-5, atol=5e-6)


def test_a_layer_or_a_length_that_there_is_not_is_named(model):
    with pytest.raises(ValueError, match="layer must be one of 2 selective ones, got 2"):
        trained_inputs.trained_inputs(Path("run"), 40, 2)
    with pytest.raises(ValueError, match="has 50 tokens, got length 51"):
        trained_inputs.trained_inputs(Path("run"), 51, -1)


def test_data_without_documents_has_no_stream():
    with pytest.raises(ValueError, match="data must have documents, got task='mqar'"):
        held_out_stream({"task": "mqar", "batch_size": 2, "seq_len": 64})


@pytest.mark.slow
def test_the_benchmark_times_a_trained_layer(tmp_path):
    flags = ("--config=configs/code.py:smoke", "--progress=false", f"--config.data.source={Path(__file__).parents[2]}")
    trained = program("train", flags, tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    shape = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["model"]
    always = [f"--{name}={shape[name]}" for name in ("budget", "block_size", "num_heads", "num_kv_heads", "head_dim",
                                                     "router_dim")]
    always += ["--inputs=trained", f"--trained_run={tmp_path / 'run'}", "--mechanisms=selective", "--repeats=1"]
    done = program("benchmark_attention", always, tmp_path / "times", "--lengths=256,512")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "times" / "report.json").read_text())
    assert report["selective_against_reference"]["512"]["relative_error"] < 1e-5
    assert 1 <= report["choices"]["512"]["union_8"] <= 8
    wrong = program("benchmark_attention", always, tmp_path / "wrong", "--lengths=256", "--router_dim=8")
    assert wrong.returncode and "--trained_run has inputs" in wrong.stdout + wrong.stderr
