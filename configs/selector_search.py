"""How far past its training length does each selector still find what it read? Needles, on one accelerator.

    python -m experiments.sweep --config=configs/selector_search.py --workdir=runs/search --parallel_cells=3 --gpus=1

32 two-word keys with two-word values among random words of the same vocabulary, trained on up to 1,024 tokens and
evaluated at up to 65,536, in bf16. Each task is one change to the first; `--cells` picks, for instance
`--cells='(needles|router256)-selective-256-'`. Cost: 2 to 4 minutes a cell on an H100, three at a time. Expected:
docs/selector.md has the figures of the best, docs/experiments/selector_log.md those of the others.
"""

from ml_collections import ConfigDict

from configs.base import LEARNED8, make_smoke, search_run

UNGATED = {"ungated_steps": 360}
BOTH = {"model": {"router_training": "both", "router_dim": 256}, "training": UNGATED}
TRAIN_2048 = {"data": {
    "seq_len": 2048, "curriculum": ((0, 256, 8), (700, 512, 16), (1200, 1024, 32), (1500, 2048, 32))}}
LONGER = BOTH | TRAIN_2048 | {"training": UNGATED | {"steps": 2400}}  # 900 instead of 300 steps at 2,048
BLOCK16 = LONGER | {"model": BOTH["model"] | {"block_size": 16}}


def block16(section: str, **changes) -> dict:
    """`BLOCK16`, the best so far, with changes to one of its sections."""
    return BLOCK16 | {section: BLOCK16[section] | changes}


VARIANTS = {
    "needles": {},
    "block16": {"model": {"block_size": 16}},  # twice as many blocks for the same budget
    "router256": {"model": {"router_dim": 256}},
    "ungated": {"training": UNGATED},  # attention learns undisturbed before the gate comes in
    "distilled": {"model": {"router_training": "distilled"}},
    "both": {"training": UNGATED, "model": {"router_training": "both"}},
    "both256": BOTH,
    "train2048": BOTH | TRAIN_2048,  # budget 256 is 1/8 of it
    "taught2048": BOTH | {  # routers are taught on 32 blocks to choose from instead of the 8 that 256 tokens have
        "data": {"seq_len": 2048, "curriculum": ((0, 256, 8), (500, 512, 16), (700, 1024, 32), (1000, 2048, 32))},
        "training": {"steps": 2000, "ungated_steps": 800, "dense_steps": 900}},
    "train2048_2400": LONGER,
    "train2048_2400_block16": BLOCK16,
    # nodes of 1,024 tokens, 32 of them kept: nothing is pruned in training, most of it is at a million tokens
    "block16_tree": block16("model", fanouts=(64,), beam_width=32),
    "block16_mean4": block16("model", router_window=4),  # do neighbours choose alike, and what does it cost?
    "block16_mean8": block16("model", router_window=8),
    "block16_learned8": block16("model", **LEARNED8),  # not run yet
    "block16_untied_learned8": block16("model", **LEARNED8, router_tied=False),
    "block16_router128": block16("model", router_dim=128),
    "block16_one_selective": block16("model", layer_pattern=("local", "local", "local", "selective")),
    "block16_window64": block16("model", local_window=64),
    "block16_batch16": block16("data", batch_size=16),  # half the tokens
    "block16_1800": block16("training", steps=1800),
    "block16_quick": BLOCK16 | {  # a quarter of the cost: half the tokens a step, fewer steps before the full length
        "data": {"batch_size": 16, "seq_len": 2048,
                 "curriculum": ((0, 256, 8), (400, 512, 16), (600, 1024, 32), (800, 2048, 32))},
        "training": UNGATED | {"steps": 1500}},
}


def get_config(arg: str = "") -> ConfigDict:
    """The full search, or with `arg="smoke"` one of a minute that only shows that everything fits together."""
    config = search_run(arg)
    config.data.task = "needles"
    config.data.vocab_size = 512
    config.data.seq_len = 1024
    config.data.batch_size = 32
    config.data.key_tokens = 2
    config.data.value_tokens = 2
    config.data.num_pairs = 32
    config.data.num_queries = 64
    config.data.curriculum = ((0, 256, 8), (700, 512, 16), (1200, 1024, 32))

    config.model.local_window = 32

    config.training.steps = 1800

    config.sweep = ConfigDict()
    config.sweep.tasks = ConfigDict(VARIANTS)
    config.sweep.mechanisms = ("dense", "selective", "gated_mean", "block_mean")
    config.sweep.budgets = (256, 512)
    config.sweep.learning_rates = ()  # of every arm; none for the rate above
    config.sweep.seeds = (0,)
    config.sweep.eval_lengths = (1024, 8192, 65536)
    config.sweep.eval_batches = 4
    config.sweep.eval_batch_size = 2
    config.sweep.timing_repeats = 0  # cells side by side on one accelerator slow each other down

    if arg == "smoke":
        make_smoke(config)
        config.data.seq_len, config.data.num_pairs, config.data.num_queries = 128, 4, 8
        config.data.curriculum = ()
        config.sweep.tasks = ConfigDict({"needles": {}})
        config.model.width, config.model.mlp_width = 64, 128
        config.sweep.mechanisms = ("dense", "selective")
        config.sweep.budgets = (96,)
        config.sweep.eval_lengths = (128, 256)
        config.sweep.eval_batches = 1
    return config
