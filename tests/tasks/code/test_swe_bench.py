"""Predictions as SWE-bench's harness reads them."""

import json

import pytest

from subq_jax.tasks.code.swe_bench import patch_of, write_predictions


def test_predictions_are_one_object_a_line(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, "subq", {"sympy__sympy-20590": "--- a/x\n+++ b/x\n", "psf__requests-1": ""})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"instance_id": "sympy__sympy-20590", "model_name_or_path": "subq", "model_patch": "--- a/x\n+++ b/x\n"},
        {"instance_id": "psf__requests-1", "model_name_or_path": "subq", "model_patch": ""}]


def test_the_patch_of_an_answer():
    assert patch_of("Here:\n```diff\n--- a/x\n+++ b/x\n```\nDone.") == "--- a/x\n+++ b/x\n"
    assert patch_of("--- a/x\n+++ b/x") == "--- a/x\n+++ b/x\n" and patch_of("") == ""


@pytest.mark.parametrize("model, patches, message", [
    ("", {}, "model_name must not be empty"), ("m", {"sympy-1": ""}, "instance_id must read like .*, got 'sympy-1'"),
    ("m", {"a__b-1": None}, "model_patch of a__b-1 must be text, got NoneType")])
def test_what_the_harness_would_refuse_is_refused(tmp_path, model, patches, message):
    with pytest.raises(ValueError, match=message):
        write_predictions(tmp_path / "p.jsonl", model, patches)
