"""Reading train_args.toml and a command line as the trainer does."""

from pathlib import Path

from library.anima_runtime.command_line import GROUPS, setup_parser
from library.settings.config_file import LoadedConfig, read_config


def read(*argv: str, toml_text: str | None = None, folder: Path | None = None) -> LoadedConfig:
    words = list(argv)
    if toml_text is not None:
        (folder / "train.toml").write_text(toml_text, encoding="utf-8")
        words += ["--config_file", str(folder / "train.toml")]
    return read_config(setup_parser(), words, GROUPS)


def found(loaded: LoadedConfig) -> dict[str, str]:
    """The problems by place, without what is needed but missing."""
    needed = ("is needed" in p.message for p in loaded.problems)
    return {p.where: p.message for p, is_needed in zip(loaded.problems, needed) if not is_needed}
