"""The first thing to run: what does selective attention buy, against what it is compared with?

    python -m experiments.sweep --config=configs/readme_sweep.py --workdir=runs/readme --parallel_cells=2

Four mechanisms at two budgets on associative recall and on real code, trained on 128 tokens and evaluated at up to
2,048.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The full sweep, or with `arg="smoke"` one of a minute that only shows that everything fits together."""
    if arg not in ("", "smoke"):
        raise ValueError(f"the config's argument must be 'smoke' or nothing, got {arg!r}")
    config = ConfigDict()
    config.seed = 0  # each cell's own comes from sweep.seeds

    config.data = ConfigDict()
    config.data.task = "mqar"
    config.data.seq_len = 128
    config.data.batch_size = 32

    config.model = ConfigDict()
    config.model.vocab_size = 0  # the data's
    config.model.num_layers = 2
    config.model.width = 64
    config.model.num_heads = 4
    config.model.num_kv_heads = 1
    config.model.head_dim = 32
    config.model.mlp_width = 128
    config.model.layer_pattern = ("local", "selective")  # the first joins neighbours, the second looks far back
    config.model.local_window = 8
    config.model.mechanism = "selective"
    config.model.budget = 64  # each cell's own comes from sweep.budgets
    config.model.block_size = 8
    config.model.sink_blocks = 1
    config.model.local_blocks = 1  # the smaller budget has to leave blocks to select
    config.model.router_dim = 64
    config.model.dtype = "float32"  # CPUs have no fast bfloat16

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-3  # the same for every arm
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.01
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98  # short runs: 0.999 would average over all of them
    config.optimizer.clip_norm = 1.0
    config.optimizer.final_lr_fraction = 0.1

    config.training = ConfigDict()
    config.training.steps = 260
    config.training.dense_steps = 65  # the first curriculum stage
    config.training.checkpoint_every = 100
    config.training.keep_checkpoints = 1
    config.training.log_every = 20
    config.training.eval_every = 0

    recall = ConfigDict({"data": {"vocab_size": 128, "num_pairs": 16, "num_queries": 32, "batch_size": 24}})
    recall.data.curriculum = ((0, 32, 4), (65, 64, 8), (130, 128, 16))  # first step, length, pairs
    code = ConfigDict({"data": {"task": "text", "batch_size": 16}, "training": {"steps": 110, "dense_steps": 40}})

    config.sweep = ConfigDict()
    config.sweep.tasks = ConfigDict({"recall": recall, "code": code})
    config.sweep.mechanisms = ("dense", "sliding_window", "block_mean", "selective")
    config.sweep.budgets = (32, 64)
    config.sweep.seeds = (0,)
    config.sweep.eval_lengths = (128, 512, 2048)  # 1, 4 and 16 times the training length
    config.sweep.eval_batches = 2
    config.sweep.eval_batch_size = 32
    config.sweep.timing_repeats = 3

    if arg == "smoke":
        config.data.batch_size = 4
        config.data.seq_len = 64
        config.optimizer.warmup_steps = 2
        config.training.checkpoint_every = 4
        config.training.log_every = 2
        for task in (recall, code):
            task.training = ConfigDict({"steps": 6, "dense_steps": 2})
        recall.data.num_pairs, recall.data.num_queries, recall.data.curriculum = 4, 8, ()
        config.sweep.tasks = ConfigDict({"recall": recall, "code": code})
        config.sweep.mechanisms = ("dense", "selective")
        config.sweep.budgets = (32,)
        config.sweep.eval_lengths = (64, 128)
        config.sweep.eval_batches = 1
        config.sweep.eval_batch_size = 4
        config.sweep.timing_repeats = 2
    return config
