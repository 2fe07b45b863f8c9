"""What does each mechanism cost in bits per byte of real code, and what does the router need to choose there?

    python -m experiments.sweep --config=configs/code_search.py --workdir=runs/code_search --parallel_cells=4 \
        --config.data.source=/path/to/site-packages --cells="code-|-selective-"

Python sources byte by byte, trained on 2,048 bytes at a budget of 1/8 of them, evaluated at up to 32,768, in bf16. Each
task is one change to the first; `--cells` picks, here every mechanism of the first task and `selective` of the others.
Cost: about 8 minutes a cell on an H100, five at a time with `XLA_PYTHON_CLIENT_MEM_FRACTION=0.185`. Expected:
docs/selector.md has the figures: 3 to 4% more than dense at 2,048 bytes, where 2% is the aim. With three seeds, over
dense of an H200, `untied_learned8_local4` 1.2 to 2.0% more, `untied_learned8` 1.8 to 2.2, `untied_learned16` 1.7 to
2.4, `early` 1.9 to 2.5, `untied_learned8_block8` 2.4 to 3.3, `mean4` 2.6 to 2.9%. With one: `half` 1.8, `untied_mean4`
2.2, `learned8` 2.5, `window256` 3.8, `taught` 4.3, `distilled_taught` 5.8%. In tokens of a BPE `untied_learned8` has
1.4, 1.5 and 0.4%.
`distilled`, `block32`, `block64` and `mean8` were trained and then stopped, `taught_gate` before it went sparse
(docs/experiments/selector_log.md); `gate`, `local4` and `untied` have not been run.
`routing_union_8` is how many distinct blocks 8 neighbours choose over one's (1 to 8).

The standard library, the default, has 10 MB to train on: the run passes over it 8 times. A `site-packages` folder of
110 MB is passed over once and prepared in 5 s. Packages are folders below the source, so name `site-packages` and not
its parent. Longer rows hold more of a file and not of a package: 3/4 of the standard library's held-out bytes have
4,096 or more before them in rows of 32,768, 1/3 have 16,384 (of that `site-packages` 2/3 and 1/5).
`--config.data.tokenizer=bpe` reads 3.2 bytes of such a folder a token instead of one.
"""

from ml_collections import ConfigDict

from configs.base import LEARNED8, make_smoke, search_run

VARIANTS = {
    "code": {},
    # a router is taught where dense attention looks until the model goes sparse: later is nearer to what it will serve
    "taught": {"training": {"dense_steps": 1200, "ungated_steps": 1100}},
    "taught_gate": {"training": {"dense_steps": 1200, "ungated_steps": 600}},
    "distilled": {"model": {"router_training": "distilled"}},  # no gate, and a teacher to the end
    "distilled_taught": {"model": {"router_training": "distilled"}, "training": {"dense_steps": 1200}},
    "gate": {"model": {"router_training": "gate"}},  # does code need the teacher, as short trainings did?
    "block32": {"model": {"block_size": 32}},  # half as many blocks for the same budget
    "block64": {"model": {"block_size": 64}},  # a quarter: what a machine would rather read
    "local4": {"model": {"local_blocks": 4}},  # three more blocks that need no choosing
    "window256": {"model": {"local_window": 256}},  # the layers between see as much as the budget
    "mean4": {"model": {"router_window": 4}},  # do neighbours choose alike, and what does it cost?
    "mean8": {"model": {"router_window": 8}},
    "learned8": {"model": LEARNED8},
    "untied": {"model": {"router_tied": False}},  # does each query head look for something else?
    "untied_mean4": {"model": {"router_window": 4, "router_tied": False}},
    "untied_learned8": {"model": LEARNED8 | {"router_tied": False}},
    "untied_learned16": {"model": LEARNED8 | {"router_tied": False, "router_window": 16}},
    "untied_learned8_block8": {"model": LEARNED8 | {"router_tied": False, "block_size": 8}},  # finer, same budget
    "untied_learned8_local4": {"model": LEARNED8 | {"router_tied": False, "local_blocks": 4}},  # three fewer to choose
    "half": {"model": LEARNED8 | {"router_tied": False, "router_share": 0.5}},  # starts nearer to a token's own query
    "early": {"model": LEARNED8 | {"router_tied": False},  # more sparse steps
              "training": {"dense_steps": 360, "ungated_steps": 240}},
}


def get_config(arg: str = "") -> ConfigDict:
    """The full search, or with `arg="smoke"` one of minutes that only shows that everything fits together."""
    config = search_run(arg)
    config.data.task = "text"
    config.data.seq_len = 2048
    config.data.batch_size = 32
    config.data.curriculum = ((0, 512), (700, 1024), (1000, 2048))  # dense attention and its routers' lessons are short
    config.data.source = ""  # the standard library of the running interpreter
    config.data.suffix = ".py"  # installed packages bring tables, headers and lists of hashes
    config.data.data_dir = ""  # the user's cache folder
    config.data.tokenizer = "bytes"
    config.data.bpe_vocab_size = 4096  # of the other tokenizer, "bpe"

    config.model.block_size = 16
    config.model.local_window = 128  # what is further away must go through the layers under study
    config.model.router_dim = 256
    config.model.router_training = "both"

    config.optimizer.weight_decay = 0.1

    config.training.steps = 1800
    config.training.ungated_steps = 360

    config.sweep = ConfigDict()
    config.sweep.tasks = ConfigDict(VARIANTS)
    config.sweep.mechanisms = ("dense", "selective", "sliding_window", "block_mean", "global_token")
    config.sweep.budgets = (256,)
    config.sweep.learning_rates = ()  # of every arm; none for the rate above
    config.sweep.seeds = (0,)
    config.sweep.eval_lengths = (2048, 16384, 32768)
    config.sweep.eval_batches = 64
    config.sweep.eval_batch_size = 8
    config.sweep.timing_repeats = 0  # cells side by side on one accelerator slow each other down

    if arg == "smoke":
        make_smoke(config)
        config.data.seq_len = 128
        config.data.curriculum = ()
        config.model.num_layers, config.model.num_heads, config.model.head_dim = 2, 4, 32
        config.model.width, config.model.mlp_width, config.model.router_dim = 64, 128, 64
        config.training.ungated_steps = 2
        config.training.eval_every = 0
        config.sweep.tasks = ConfigDict({"code": {}})
        config.sweep.mechanisms = ("dense", "selective")
        config.sweep.budgets = (96,)
        config.sweep.eval_lengths = (128, 256)
        config.sweep.eval_batches = 1
    return config
