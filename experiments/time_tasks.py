"""What generating long contexts costs: `python -m experiments.time_tasks --output=runs/task_times.jsonl`.

Builds one haystack of every task that needs no corpus, each in a process of its own, and writes its wall and processor
seconds and the most memory the process held, the interpreter and the tokenizer included. On a busy machine processor
seconds say more, though they grow with the company too. The default BPE is trained on the standard library, as
`data.tokenizer = "bpe"` of a config is on its training split.
"""

import multiprocessing
import re
import tempfile
import time
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.program import refuse_arguments, run
from subq_jax.data.tokenizers import BpeTokenizer, ByteTokenizer, train_bpe
from subq_jax.files import write_rows
from subq_jax.tasks import SYNTHETIC, Request, find_task
from subq_jax.tasks.code import source_documents

_OUTPUT = flags.DEFINE_string("output", None, "File of rows to write.")
_TASKS = flags.DEFINE_list("tasks", list(SYNTHETIC), "Tasks that need no corpus.")
_LENGTH = flags.DEFINE_integer("length", 12_000_000, "Tokens of a prompt with its answer.", lower_bound=1)
_QUESTIONS = flags.DEFINE_integer("questions", 4, "Questions about a haystack, where it has as many.", lower_bound=1)
_VOCABULARY = flags.DEFINE_integer("bpe_vocab_size", 16_384, "Of the tokenizer; 0 for bytes.", lower_bound=0)


def cost(name: str, length: int, questions: int, bpe: Path | None) -> dict:
    """Builds a haystack in this process, which must be new: peak memory is that of its whole life."""
    request = Request(length, BpeTokenizer(bpe) if bpe else ByteTokenizer(), num_questions=questions)
    wall, processor = time.perf_counter(), time.process_time()
    haystack = find_task(name).build(request)
    return {
        "task": name, "length": length, "tokens": len(haystack.tokens), "questions": len(haystack.questions),
        "wall_seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor,
        "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The most memory this process held, by Linux; `ru_maxrss` would count what the parent held before the start."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def main(argv: list[str]) -> None:
    """Times the tasks and writes their rows."""
    refuse_arguments(argv)
    unknown = [name for name in _TASKS.value if name not in SYNTHETIC]
    if unknown:
        raise SystemExit(f"--tasks must be some of {SYNTHETIC}, got {unknown}")
    rows, size = [], _VOCABULARY.value
    table = Table("task", "wall s", "processor s", "GB at most")
    with tempfile.TemporaryDirectory() as folder:
        bpe = Path(folder) / "bpe.json" if size else None
        if bpe:
            train_bpe(source_documents(), size, bpe)
        for name in _TASKS.value:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(cost, (name, _LENGTH.value, _QUESTIONS.value, bpe))
            rows.append(row | {"bpe_vocab_size": size})
            table.add_row(name, f"{row['wall_seconds']:.1f}", f"{row['processor_seconds']:.1f}",
                          f"{row['peak_bytes'] / 1e9:.2f}")
            if _OUTPUT.value:
                write_rows(_OUTPUT.value, rows)
    Console().print(table)


if __name__ == "__main__":
    run(main)
