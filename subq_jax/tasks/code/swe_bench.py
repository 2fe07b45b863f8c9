"""Predictions in the format of SWE-bench (Jimenez et al., 2024, arXiv:2310.06770), for its own harness to run."""

import os
import re
from collections.abc import Mapping

from subq_jax.files import write_rows


def patch_of(answer: str) -> str:
    """The patch in an answer: its first fenced block, or else all of it; ends with a line's end unless empty."""
    fenced = re.search(r"^```\w*\n(.*?)^```", answer, re.DOTALL | re.MULTILINE)
    patch = fenced[1] if fenced else answer
    return patch if not patch or patch.endswith("\n") else patch + "\n"


def write_predictions(path: str | os.PathLike, model_name: str, patches: Mapping[str, str]) -> None:
    """Writes one JSON object a line with `instance_id`, `model_name_or_path` and `model_patch`.

    Args:
      path: of the JSONL file.
      model_name: what the harness names its reports by.
      patches: instance_id, such as "sympy__sympy-20590" -> a patch that `git apply` takes, "" for no answer.

    Raises:
      ValueError: for an empty `model_name`, an instance_id not of that form or a patch that is no text.
    """
    if not model_name:
        raise ValueError("model_name must not be empty")
    for instance, patch in patches.items():
        if not re.fullmatch(r"[\w.-]+__[\w.-]+-\d+", instance):
            raise ValueError(f"instance_id must read like 'owner__repository-123', got {instance!r}")
        if not isinstance(patch, str):
            raise ValueError(f"model_patch of {instance} must be text, got {type(patch).__name__}")
    write_rows(path, ({"instance_id": instance, "model_name_or_path": model_name, "model_patch": patch}
                      for instance, patch in patches.items()))
