"""What the experiments of this folder share: a small decoder, one optimiser, every field that a run needs.

Each config starts from `small_run()` or `search_run()` and states what it changes. `data` is the config's own.
"""

from ml_collections import ConfigDict

LEARNED8 = {"router_window": 8, "router_learns_window": True}  # every channel learns its own mean of 8 tokens


def small_run(arg: str) -> ConfigDict:
    """A run without data.

    Raises:
      ValueError: unless `arg`, the text after the config file's colon, is `smoke` or nothing.
    """
    if arg not in ("", "smoke"):
        raise ValueError(f"the config's argument must be 'smoke' or nothing, got {arg!r}")
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict()

    config.model = ConfigDict()
    config.model.vocab_size = 0  # the data's
    config.model.num_layers = 2
    config.model.width = 64
    config.model.num_heads = 4
    config.model.num_kv_heads = 1
    config.model.head_dim = 32
    config.model.mlp_width = 128
    config.model.layer_pattern = ("local", "selective")  # the first joins neighbours, the second looks far back
    config.model.local_window = 8  # a long window starves the selector
    config.model.key_conv_width = 2  # a value is found by the key right before it
    config.model.mechanism = "selective"
    config.model.budget = 64
    config.model.block_size = 8
    config.model.sink_blocks = 1
    config.model.local_blocks = 1
    config.model.fanouts = ()  # flat choosing: a tree of that choice makes half of its products or more (docs/gpu.md)
    config.model.beam_width = 32
    config.model.router_dim = 128
    config.model.router_window = 1  # a wider one makes neighbours choose alike: fewer distinct blocks for a tile
    config.model.router_share = 1.0  # how much of a router query is that window's mean, the rest being the token's own
    config.model.router_learns_window = False  # True lets every channel learn its weights in that window
    config.model.router_tied = True  # False gives every query head a matrix of its own, which starts as the keys'
    config.model.router_training = "gate"
    config.model.rope_base = 10_000.0
    config.model.param_dtype = "float32"
    config.model.remat = False  # True computes each layer again in the backward pass, where its activations do not fit
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
    config.training.steps = 400
    config.training.dense_steps = 110  # the router learns where to look before it decides what is seen
    config.training.ungated_steps = 0  # of them, before the router's gate comes in
    config.training.microbatches = 1  # more cut a batch into parts, where one does not fit
    config.training.checkpoint_every = 100
    config.training.keep_checkpoints = 2
    config.training.log_every = 20
    config.training.eval_every = 0
    return config


def search_run(arg: str) -> ConfigDict:
    """A run of minutes on one accelerator, still without data: what the searches share."""
    config = small_run(arg)
    config.model.num_layers = 4
    config.model.width = 256
    config.model.num_heads = 8
    config.model.head_dim = 64
    config.model.mlp_width = 1024
    config.model.key_conv_width = 3
    config.model.block_size = 32
    config.model.dtype = "bfloat16"

    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.final_lr_fraction = 0.07

    config.training.dense_steps = 540
    config.training.checkpoint_every = 600
    config.training.keep_checkpoints = 1
    config.training.log_every = 50
    return config


def make_smoke(config: ConfigDict) -> None:
    """Cuts a run down to ten steps that only show that everything fits together."""
    config.data.batch_size = 4
    config.optimizer.warmup_steps = 2
    config.training.steps = 10
    config.training.dense_steps = 4
    config.training.checkpoint_every = 5
    config.training.log_every = 2
    config.training.eval_every = 5
