"""Associative recall: can the model find, by content, what it read long ago?

    python -m experiments.train --config=configs/recall.py --workdir=runs/recall

Resumes by itself when killed; `--config=configs/recall.py:smoke` takes ten steps.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The full run, or with `arg="smoke"` one of seconds that only shows that everything fits together."""
    if arg not in ("", "smoke"):
        raise ValueError(f"the config's argument must be 'smoke' or nothing, got {arg!r}")
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.task = "mqar"
    config.data.seq_len = 128
    config.data.batch_size = 64
    config.data.vocab_size = 256
    config.data.num_pairs = 8
    config.data.num_queries = 8  # each pair once: repeated questions are answered from the last one, close by
    config.data.curriculum = ()  # constant length

    config.model = ConfigDict()
    config.model.vocab_size = 0  # the data's
    config.model.num_layers = 2
    config.model.width = 64
    config.model.num_heads = 2
    config.model.num_kv_heads = 1
    config.model.head_dim = 32
    config.model.mlp_width = 256
    config.model.layer_pattern = ("local", "selective")
    config.model.local_window = 16  # a long window starves the selector
    config.model.mechanism = "selective"
    config.model.budget = 64  # half of what there is to see: the choice matters
    config.model.block_size = 8
    config.model.sink_blocks = 1
    config.model.local_blocks = 2
    config.model.router_dim = 16
    config.model.dtype = "float32"  # CPUs have no fast bfloat16; take "bfloat16" on accelerators

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.01
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98  # short runs: 0.999 would average over all of them
    config.optimizer.clip_norm = 1.0
    config.optimizer.final_lr_fraction = 0.1

    config.training = ConfigDict()
    config.training.steps = 1000
    config.training.dense_steps = 300  # the router learns where to look before it decides what is seen
    config.training.checkpoint_every = 250
    config.training.keep_checkpoints = 2
    config.training.log_every = 50
    config.training.eval_every = 250

    if arg == "smoke":
        config.data.batch_size = 8
        config.optimizer.warmup_steps = 2
        config.training.steps = 10
        config.training.dense_steps = 4
        config.training.checkpoint_every = 5
        config.training.log_every = 2
        config.training.eval_every = 5
    return config
