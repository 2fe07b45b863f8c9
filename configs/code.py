"""Language modelling on real code: the standard library of the running interpreter, byte by byte.

    python -m experiments.train --config=configs/code.py --workdir=runs/code

Cost: 12 to 24 minutes on 2 cores, by what else runs there. Expected: 1.71 bits per byte on held-out packages (one run).
Resumes by itself when killed; `--config=configs/code.py:smoke` takes ten steps.
"""

from ml_collections import ConfigDict

from configs.base import make_smoke, small_run


def get_config(arg: str = "") -> ConfigDict:
    """The full run, or with `arg="smoke"` one of seconds that only shows that everything fits together."""
    config = small_run(arg)
    config.data.task = "text"
    config.data.seq_len = 256
    config.data.batch_size = 32
    config.data.source = ""  # the standard library of the running interpreter
    config.data.data_dir = ""  # the user's cache folder
    config.data.tokenizer = "bytes"  # bits per byte then compare with anyone's, whatever their tokenizer
    config.data.bpe_vocab_size = 4096  # of the other tokenizer, "bpe"

    config.model.num_layers = 4
    config.model.width = 128
    config.model.mlp_width = 384
    config.model.local_window = 32
    config.model.budget = 128
    config.model.block_size = 16
    config.model.local_blocks = 2

    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.1

    config.training.steps = 800
    config.training.dense_steps = 240
    config.training.checkpoint_every = 200
    config.training.eval_every = 200

    if arg == "smoke":
        make_smoke(config)
    return config
