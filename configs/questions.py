"""Questions about generated text, learned on a laptop: one needle in noise (RULER's niah_single_1), asked afterwards.

    python -m experiments.train --config=configs/questions.py --workdir=runs/questions/selective

and what follows in the README, or `make evaluation`. Trained on 256 tokens of a small vocabulary of the task's own.
Cost: 4 processor minutes, 2 for sliding_window. Expected (one run): 63 of 64 held-out answers right at 256 tokens, 16
to 20 of 20 at 512 to 8,192, asked afterwards; none of sliding_window's.
"""

from ml_collections import ConfigDict

from configs.base import make_smoke, small_run


def get_config(arg: str = "") -> ConfigDict:
    """The full run, or with `arg="smoke"` one of seconds that only shows that everything fits together."""
    config = small_run(arg)
    config.data.task = "questions"
    config.data.question_tasks = ("niah_single_1",)
    config.data.num_questions = 4  # at most, where a context has as many to ask
    config.data.context_weight = 0.1
    config.data.text_share = 0.0
    config.data.seq_len = 256
    config.data.batch_size = 16
    config.data.tokenizer = "bpe"
    config.data.bpe_vocab_size = 512
    config.data.source = ""  # of text, where its share is above 0: the standard library of the running interpreter
    config.data.data_dir = ""  # the user's cache folder

    config.model.local_window = 16
    config.model.key_conv_width = 4
    config.model.router_training = "both"

    config.optimizer.learning_rate = 4e-3

    config.training.steps = 600
    config.training.dense_steps = 250
    config.training.ungated_steps = 150
    config.training.eval_every = 100

    if arg == "smoke":
        make_smoke(config)
        config.training.ungated_steps = 2
    return config
