"""Trained runs as models that answer questions, for the programs that ask them."""

import hashlib
import json
from pathlib import Path

from subq_jax.data import DataConfig, open_tokenizer
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
      tokenizer_sha256: of the vocabulary; a BPE numbers its tokens in the order of its merges, so this says all of it.
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
        self.tokenizer = open_tokenizer(data)
        vocabulary = sorted(self.tokenizer.hugging_face().get_vocab().items())
        self.tokenizer_sha256 = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
        model = train(config, workdir, show_progress=False).model
        self.answering = AnsweringModel(Reader(model), self.tokenizer, model.config)
