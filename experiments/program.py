"""How the programs start that a user gives a config or a run: `run(main)` in place of `absl.app.run(main)`."""

from absl import app, flags


def run(main) -> None:
    """Runs `main(argv)`; a wrong flag, or a config that cannot be loaded, ends in one line, not in a trace."""
    app.run(main, flags_parser=_parse)


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
