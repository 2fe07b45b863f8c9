"""The first thing to run: what does selective attention buy, against what it is compared with?

    python -m experiments.sweep --config=configs/readme_sweep.py --workdir=runs/readme --parallel_cells=2

Four mechanisms at two budgets on associative recall and on real code, trained on 128 tokens and evaluated at up to
2,048. Cost: 8 minutes on 2 cores. Expected: dense answers over 95% at every length; selective equals it at budget 64
and stays within ten points of it at 32; the window forgets; block means fall off. docs/results.md has the figures.
"""

from ml_collections import ConfigDict

from configs.base import make_smoke, small_run


def get_config(arg: str = "") -> ConfigDict:
    """The full sweep, or with `arg="smoke"` one of a minute that only shows that everything fits together."""
    config = small_run(arg)  # each cell's seed, mechanism and budget come from config.sweep
    config.data.task = "mqar"
    config.data.seq_len = 128
    config.data.batch_size = 16
    config.training.keep_checkpoints = 1
    config.training.ungated_steps = 75
    config.model.router_training = "both"  # with the gate alone, code's gates fall until chosen blocks weigh nothing

    recall = ConfigDict({"data": {"vocab_size": 128, "num_pairs": 16, "num_queries": 32}})
    recall.data.curriculum = ((0, 32, 4), (110, 128, 16))  # first step, length, pairs; the first stage is the warm-up
    code = ConfigDict({"data": {"task": "text"}, "training": {"steps": 110, "dense_steps": 40, "ungated_steps": 26}})

    config.sweep = ConfigDict()
    config.sweep.tasks = ConfigDict({"recall": recall, "code": code})
    config.sweep.mechanisms = ("dense", "sliding_window", "block_mean", "selective")
    config.sweep.budgets = (32, 64)
    config.sweep.learning_rates = ()  # of every arm; none for the one of configs/base.py
    config.sweep.seeds = (0,)
    config.sweep.eval_lengths = (128, 512, 2048)  # 1, 4 and 16 times the training length
    config.sweep.eval_batches = 2
    config.sweep.eval_batch_size = 32
    config.sweep.timing_repeats = 3

    if arg == "smoke":
        make_smoke(config)
        config.training.ungated_steps = 2
        config.data.seq_len = 64
        code.training = ConfigDict({"steps": 10, "dense_steps": 4})
        recall.data.num_pairs, recall.data.num_queries, recall.data.curriculum = 4, 8, ()
        config.sweep.tasks = ConfigDict({"recall": recall, "code": code})
        config.sweep.mechanisms = ("dense", "selective")
        config.sweep.budgets = (32,)
        config.sweep.eval_lengths = (64, 128)
        config.sweep.eval_batches = 1
        config.sweep.eval_batch_size = 4
        config.sweep.timing_repeats = 2
    return config
