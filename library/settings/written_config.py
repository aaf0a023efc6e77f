"""--output_config: the configuration of a command line as a file."""

from __future__ import annotations

import os
from pathlib import Path

from library.errors import ConfigError, as_utf8
from library.settings.config_file import ONLY_TYPED, LoadedConfig, with_suffix
from library.settings.options import flags_of
from library.utils import atomic_write

NOT_WRITTEN = (*ONLY_TYPED, "preset")
"""A preset's values are written themselves, so that the file means the same for good."""


def write_config(loaded: LoadedConfig) -> Path:
    """--output_config: write what differs from the defaults to --config_file; never overwrites."""
    import tomlkit

    if "config_file" not in loaded.given:
        raise ConfigError("--output_config: name the file to write with --config_file.")
    target = with_suffix(loaded.given["config_file"].value)
    if os.path.exists(target):
        raise ConfigError(f"--output_config: {target} exists already. Name another --config_file.")
    document = tomlkit.document()
    for group, values in loaded.groups.items():
        for flag_ in flags_of(group):
            value = getattr(values, flag_.dest)
            if value != flag_.default and flag_.dest not in NOT_WRITTEN:
                document[flag_.names[0].removeprefix("--")] = list(value) if flag_.many else value
    text = tomlkit.dumps(document)
    if as_utf8(text) != text:
        message = "holds names that are not UTF-8, which TOML cannot. Rename them, or leave it out."
        raise ConfigError(f"--output_config: the command line {message}")
    try:
        with atomic_write(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output_config: {target} cannot be written ({error}).") from error
    return target
