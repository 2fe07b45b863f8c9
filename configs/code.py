"""Language modelling on real code: the standard library of the running interpreter, byte by byte.

    python -m experiments.train --config=configs/code.py --workdir=runs/code

Resumes by itself when killed; `--config=configs/code.py:smoke` takes ten steps.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The full run, or with `arg="smoke"` one of seconds that only shows that everything fits together."""
    if arg not in ("", "smoke"):
        raise ValueError(f"the config's argument must be 'smoke' or nothing, got {arg!r}")
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.task = "text"
    config.data.seq_len = 256
    config.data.batch_size = 32
    config.data.source = ""  # the standard library of the running interpreter
    config.data.data_dir = ""  # the user's cache folder
    config.data.tokenizer = "bytes"  # bits per byte then compare with anyone's, whatever their tokenizer
    config.data.bpe_vocab_size = 4096  # of the other tokenizer, "bpe"

    config.model = ConfigDict()
    config.model.vocab_size = 0  # the data's
    config.model.num_layers = 4
    config.model.width = 128
    config.model.num_heads = 4
    config.model.num_kv_heads = 1
    config.model.head_dim = 32
    config.model.mlp_width = 384
    config.model.layer_pattern = ("local", "selective")
    config.model.local_window = 32  # a long window starves the selector
    config.model.mechanism = "selective"
    config.model.budget = 128
    config.model.block_size = 16
    config.model.sink_blocks = 1
    config.model.local_blocks = 2
    config.model.router_dim = 32
    config.model.dtype = "float32"  # CPUs have no fast bfloat16; take "bfloat16" on accelerators

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.1
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95  # short runs: 0.999 would average over all of them
    config.optimizer.clip_norm = 1.0
    config.optimizer.final_lr_fraction = 0.1

    config.training = ConfigDict()
    config.training.steps = 800
    config.training.dense_steps = 240  # the router learns where to look before it decides what is seen
    config.training.checkpoint_every = 200
    config.training.keep_checkpoints = 2
    config.training.log_every = 20
    config.training.eval_every = 200

    if arg == "smoke":
        config.data.batch_size = 4
        config.optimizer.warmup_steps = 2
        config.training.steps = 10
        config.training.dense_steps = 4
        config.training.checkpoint_every = 5
        config.training.log_every = 2
        config.training.eval_every = 5
    return config
