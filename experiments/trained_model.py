"""Trained runs as models that answer questions, for the programs that ask them."""

from pathlib import Path

from subq_jax.data import DataConfig, data_info, open_tokenizer
from subq_jax.evaluation.answering import AnsweringModel
from subq_jax.inference.reader import Reader
from subq_jax.training import train
from subq_jax.training.workdir import stored_config


class TrainedModel:
    """A trained run as it answers: its arm, the tasks it was trained on, its tokenizer and `text`, equal where
    tokenizers are."""

    def __init__(self, workdir: Path):
        config = stored_config(workdir)
        self.arm = {"mechanism": config.model.mechanism, "seed": config.seed,
                    "budget": None if config.model.mechanism == "dense" else config.model.budget}
        data = DataConfig.from_mapping(config.data)
        self.taught = data.question_tasks
        self.tokenizer, self.text = open_tokenizer(data), data_info(data).fingerprint
        model = train(config, workdir, show_progress=False).model
        self.answering = AnsweringModel(Reader(model), self.tokenizer, model.config)
