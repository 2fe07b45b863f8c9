"""How the programs start: `run(main)` in place of `absl.app.run(main)`.

`refuse_arguments` ends those that are given more than flags. `open_output` opens what the programs write that have one
file of rows in place of a workdir.
"""

import functools
import os
from pathlib import Path
from typing import TextIO

from absl import app, flags


def run(main) -> None:
    """Runs `main(argv)`; a wrong flag, or a config that cannot be loaded, ends in one line, not in a trace."""
    app.run(functools.partial(_in_one_line, main), flags_parser=_parse)


def refuse_arguments(argv: list[str]) -> None:
    """Ends in one line where words belong to no flag, such as the rest of a list that was written with spaces."""
    if len(argv) > 1:
        raise SystemExit(f"unexpected arguments {argv[1:]}: values of a list are separated by commas, without spaces")


def open_output(path: str | None) -> TextIO:
    """The file at `path` to append rows to, its folder made; without a path what is written goes nowhere."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return open(path or os.devnull, "a", encoding="utf-8")


def _in_one_line(main, argv: list[str]) -> None:
    try:
        main(argv)
    except app.UsageError as error:
        raise SystemExit(str(error)) from None


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # a missing file is only told of when the config is used
        return rest
    except (flags.Error, OSError, ImportError, AttributeError, SyntaxError) as error:
        asked = " ".join(arg for arg in argv[1:] if arg.lstrip("-").startswith("config"))
        reason = str(error).strip().splitlines()[-1].strip()  # before it stand a trace, or the places looked at
        raise SystemExit(f"{asked}: {reason}" if asked else f"{reason} (--help lists the flags)") from None
