"""One model that reads code and answers about 32 keys at once, with the head shapes that the kernels are timed at.

    python -m experiments.train --config=configs/code_and_questions.py --workdir=runs/code_and_questions \
        --config.data.source=/path/to/site-packages

Half of the rows are Python sources, half are questions: about up to 32 needles in noise, and about lists of keys and
values; in tokens of one BPE, up to 8,192 of them. 16 query heads of 128 on 1 KV head, blocks of 64 of which 29 are
selected beside a sink and two local ones. Its activations on real tokens are what
`experiments.benchmark_attention --inputs=trained` times. Cost: 14 minutes on an H200, preparing and compiling
included. Results: docs/gpu.md; the "plain router" there had `--config.model.router_window=1
--config.model.router_learns_window=False --config.model.router_tied=True`.
"""

from ml_collections import ConfigDict

from configs.base import LEARNED8, make_smoke, search_run


def get_config(arg: str = "") -> ConfigDict:
    """The full run, or with `arg="smoke"` one of a minute that only shows that everything fits together."""
    config = search_run(arg)
    config.data.task = "questions"
    config.data.question_tasks = ("niah_noise_32", "mqar")
    config.data.num_questions = 32
    config.data.context_weight = 0.1
    config.data.text_share = 0.5
    config.data.seq_len = 8192  # the budget is a quarter of it; of 4,096 it would be half, and little to choose
    config.data.batch_size = 8
    config.data.curriculum = ((0, 512), (700, 1024), (1000, 2048), (1300, 4096), (2800, 8192))
    config.data.source = ""  # the standard library of the running interpreter
    config.data.suffix = ".py"
    config.data.data_dir = ""  # the user's cache folder
    config.data.tokenizer = "bpe"
    config.data.bpe_vocab_size = 4096

    config.model.num_heads, config.model.num_kv_heads, config.model.head_dim = 16, 1, 128
    config.model.layer_pattern = ("local", "selective")
    config.model.local_window = 64
    config.model.budget = 2048
    config.model.block_size = 64
    config.model.local_blocks = 2
    config.model.router_dim = 64
    config.model.router_training = "both"
    config.model.update(LEARNED8 | {"router_tied": False})  # neighbours choose more alike than by one matrix for all

    config.optimizer.weight_decay = 0.1

    config.training.steps = 4500  # two runs find 94 and 96% of 32 needles in 65,536 tokens, 1,800 steps 71%
    config.training.dense_steps = 1300
    config.training.ungated_steps = 360

    if arg == "smoke":
        make_smoke(config)
        config.data.seq_len = 512
        config.data.curriculum = ()
        config.data.num_questions = 4
        config.model.num_layers, config.model.num_heads, config.model.head_dim = 2, 4, 32
        config.model.width, config.model.mlp_width = 64, 128
        config.model.budget = 384
        config.training.ungated_steps = 2
    return config
