"""Questions about generated text: keys and their values, learned in minutes on a CPU, asked by experiments.evaluate.

    python -m experiments.train --config=configs/questions.py --workdir=runs/questions
"""

from ml_collections import ConfigDict

from configs.base import make_smoke, small_run


def get_config(arg: str = "") -> ConfigDict:
    """The full run, or with `arg="smoke"` one of seconds that only shows that everything fits together."""
    config = small_run(arg)
    config.data.task = "questions"
    config.data.question_tasks = ("phonebook",)
    config.data.num_questions = 8
    config.data.text_share = 0.0
    config.data.context_weight = 0.1
    config.data.seq_len = 512
    config.data.batch_size = 16
    config.data.curriculum = ((0, 256), (300, 512))
    config.data.tokenizer = "bpe"
    config.data.bpe_vocab_size = 1024
    config.data.source = ""
    config.data.data_dir = ""

    config.model.budget = 128
    config.model.width = 128
    config.model.mlp_width = 256
    config.model.local_window = 16
    config.model.key_conv_width = 4
    config.training.steps = 800
    config.training.dense_steps = 300
    if arg == "smoke":
        make_smoke(config)
    return config
