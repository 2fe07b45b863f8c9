"""Trains one model: `python -m experiments.train --config=configs/recall.py:smoke --workdir=runs/recall`.

Any field that the config names can be set from the command line (`--config.model.num_layers=4`). Killed and started
again with the same command, the run continues to the same bits. `--verbosity=0` also shows what the libraries say.
"""

import logging
from pathlib import Path

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from experiments.program import refuse_arguments, run
from subq_jax.parallel import maybe_initialize_distributed, parse_mesh
from subq_jax.training import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, config.")
_MESH = flags.DEFINE_string("mesh", "", "Devices by axis, for instance data:2,fsdp:4; empty is one device.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Whether this process is one of several hosts.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Whether to draw a progress bar.")
_PEAK_TFLOPS = flags.DEFINE_float(
    "peak_tflops", None, "Peak of one device for MFU; from a table of known devices by default.", lower_bound=1e-3
)
flags.mark_flags_as_required(["config", "workdir"])
logger = logging.getLogger("subq_jax")


def main(argv: list[str]) -> None:
    """Trains, or goes on where the workdir stands."""
    refuse_arguments(argv)
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells of its every move at the usual verbosity; this package's own messages stay.
        absl_logging.set_verbosity(absl_logging.WARNING)
        logger.setLevel(logging.INFO)
    maybe_initialize_distributed(_MULTIHOST.value)
    keep_compiled(_WORKDIR.value)
    try:
        result = train(
            _CONFIG.value,
            _WORKDIR.value,
            mesh=parse_mesh(_MESH.value),
            show_progress=_PROGRESS.value,
            device_peak_flops=_PEAK_TFLOPS.value and _PEAK_TFLOPS.value * 1e12,
        )
    except (ValueError, FloatingPointError) as error:
        logger.debug("the full trace (shown with --verbosity=1)", exc_info=True)
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    logger.info("finished step %d in %s: %s", result.step, _WORKDIR.value, result.metrics[-1])


def keep_compiled(workdir: str) -> None:
    """Keeps compiled programs in the workdir, unless the user keeps them elsewhere.

    On a GPU every compilation times the candidates for each operation and may settle on others than the last one did;
    a resumed run continues to the same bits only with the very programs that it was started with.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(workdir).absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


if __name__ == "__main__":
    run(main)
