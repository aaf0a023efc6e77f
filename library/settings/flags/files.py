"""The flags of configuration files."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.options import flag


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Configuration files"""

    config_file: str | None = flag(
        None, "TOML file with any of these flags; the command line wins; .toml may be left out", path=True)
    output_config: bool = flag(
        False, "write what differs from the defaults to --config_file and exit"
    )
    preset: str | None = flag(
        None, "a configuration to begin with: a name such as style_lora_12gb, or a TOML file; all else wins"
    )
    dataset_config: str | None = flag(None, "TOML or JSON file that describes the pictures", path=True)
    check_only: bool = flag(False, "report on the run, as tools/doctor.py does, and exit")
