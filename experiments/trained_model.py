"""Trained runs as models that answer questions, for the programs that ask them."""

import hashlib
from pathlib import Path

from subq_jax.data import DataConfig, data_info, open_tokenizer
from subq_jax.evaluation.answering import AnsweringModel
from subq_jax.inference.reader import Reader
from subq_jax.training import train
from subq_jax.training.workdir import finished_config


class TrainedModel:
    """A trained run as it answers.

    Attributes:
      run: a checksum of its config.
      arm: `mechanism`, `budget` (None for dense) and `seed`, as rows of samples name it.
      taught: names of the tasks that it was trained on.
      tokenizer: its own.
      data_fingerprint: of its data; runs with the same one have the same tokenizer, so that a haystack serves both.
      answering: the model.

    Raises:
      ValueError: where the folder has no finished run on text.
    """

    def __init__(self, workdir: Path):
        config = finished_config(workdir)
        self.run = hashlib.sha256((workdir / "config.json").read_bytes()).hexdigest()[:16]
        self.arm = {"mechanism": config.model.mechanism, "seed": config.seed,
                    "budget": None if config.model.mechanism == "dense" else config.model.budget}
        data = DataConfig.from_mapping(config.data)
        self.taught = data.question_tasks
        self.tokenizer, self.data_fingerprint = open_tokenizer(data), data_info(data).fingerprint
        model = train(config, workdir, show_progress=False).model
        self.answering = AnsweringModel(Reader(model), self.tokenizer, model.config)
