"""Training: configs, the step, checkpoints, metrics, and the loop that ties them together."""

from subq_jax.training.config import OptimizerConfig, RunConfig, TrainingConfig, check_config
from subq_jax.training.loop import TrainingResult, train

__all__ = ["OptimizerConfig", "RunConfig", "TrainingConfig", "TrainingResult", "check_config", "train"]
