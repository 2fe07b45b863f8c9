"""Every mechanism at its best learning rate, on recall and on real code, three seeds: the comparison that counts.

    python -m experiments.sweep --config=configs/full_sweep.py --workdir=runs/full --parallel_cells=3

Needles as in the best of configs/selector_search.py and code as in configs/code_search.py, both trained on 2,048 tokens
at a budget of 256, 1/8 of them. Every arm has the same grid of learning rates; a cheaper order is
`--cells='-seed0$'` first, and then of each arm only the rate that the report names best, for instance
`--cells='recall-selective-256-lr0.0015-'`. Cost: not yet measured as a whole; a selective recall cell takes 3 minutes
on an H100, three at a time with `XLA_PYTHON_CLIENT_MEM_FRACTION=0.28`, and there are 162. Expected: dense answers over
95% at the training length, or nothing else counts; docs/selector.md has what the search found.
"""

from ml_collections import ConfigDict

from configs import code_search, selector_search
from configs.base import small_run
from subq_jax.attention.mechanisms import MECHANISMS

SECTIONS = ("data", "model", "optimizer", "training")


def get_config(arg: str = "") -> ConfigDict:
    """The full sweep, or with `arg="smoke"` one of minutes that only shows that everything fits together."""
    config = small_run(arg)
    needles, code = selector_search.get_config(arg), code_search.get_config(arg)
    if arg != "smoke":
        for section, fields in selector_search.VARIANTS["block16_1800"].items():
            needles[section].update(fields)

    config.sweep = ConfigDict()
    config.sweep.tasks = ConfigDict({
        name: {section: task[section].to_dict() for section in SECTIONS}
        for name, task in (("recall", needles), ("code", code))})
    config.sweep.mechanisms = MECHANISMS
    config.sweep.budgets = (256,)
    config.sweep.learning_rates = (7.5e-4, 1.5e-3, 3e-3)
    config.sweep.seeds = (0, 1, 2)
    config.sweep.eval_lengths = (2048, 16384, 32768, 131072)  # 1, 8, 16 and 64 times the training length
    config.sweep.eval_batches = 32
    config.sweep.eval_batch_size = 2
    config.sweep.timing_repeats = 0  # cells side by side on one accelerator slow each other down

    if arg == "smoke":
        config.sweep.mechanisms = ("dense", "selective")
        config.sweep.budgets = (96,)
        config.sweep.learning_rates = (1e-3, 2e-3)
        config.sweep.seeds = (0,)
        config.sweep.eval_lengths = (128, 256)
        config.sweep.eval_batches = 1
    return config
