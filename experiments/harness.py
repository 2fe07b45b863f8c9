"""EleutherAI's lm-evaluation-harness on a trained run: `python -m experiments.harness --model=subq_jax`.

Registers the model `subq_jax` and hands every flag on to the harness's own command line, which knows no plugins:

    python -m experiments.harness --model=subq_jax --model_args=workdir=runs/code,max_length=8192 --tasks=lambada_openai

Model arguments: `workdir`, a finished run of `experiments.train` on text; `max_length`, tokens read for one request at
most (default: as many as come); `tokenizer`, a folder that the run's tokenizer is written to where it is missing, in
Hugging Face's format: the harness's RULER tasks measure their prompts with it. In Python, after `import
experiments.harness`, `lm_eval.simple_evaluate(model="subq_jax", model_args={"workdir": ...})` does the same.
"""

from pathlib import Path

try:
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name != "lm_eval":
        raise
    raise SystemExit('experiments.harness needs lm_eval: pip install -e ".[harness]" -c constraints.txt') from None

from experiments.trained_model import TrainedModel
from subq_jax.data.hugging_face import HuggingFaceTokenizer, write_folder
from subq_jax.evaluation.harness import HarnessModel

NAME = "subq_jax"


@register_model(NAME)
class TrainedRun(HarnessModel):
    """A run as the harness makes it from its model arguments; `device` is what it sends to PyTorch models, unused here.

    Raises:
      ValueError: when `workdir` holds no finished run on text, `tokenizer` holds another tokenizer than the run's, or
        for a batch size above 1.
    """

    def __init__(self, workdir: str, max_length: int | None = None, tokenizer: str = "", batch_size: int | str = 1,
                 device: str | None = None):
        if str(batch_size) != "1":
            raise ValueError(f"batch_size must be 1: one request is read at a time, got {batch_size!r}")
        model = TrainedModel(Path(workdir).absolute())
        super().__init__(model.answering.reader, model.tokenizer, max_length)
        if tokenizer:
            share_tokenizer(model.tokenizer, Path(tokenizer))


def share_tokenizer(ours, folder: Path) -> None:
    """Writes a tokenizer to a folder, or makes sure that it is the one there."""
    if not folder.exists():
        write_folder(ours, folder)
    theirs = HuggingFaceTokenizer(folder)
    text = "The grass is green.\n\ndef größe(x): return 0x1234567\n"
    if theirs.vocab_size != ours.vocab_size or theirs.encode(text).tolist() != ours.encode(text).tolist():
        raise ValueError(f"tokenizer must be a new folder, or one with the run's own tokenizer, got {folder}")


def main() -> None:
    """The harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
