"""The flags of logs."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.effects import needs
from library.settings.options import at_least, between, flag

NO_LOGS = needs(lambda o: o.log_with != "none", "log_with is none")
WANDB = needs(lambda o: o.log_with in ("wandb", "all"), "log_with is {o.log_with}")
SERVED = needs(lambda o: o.auto_start_tensorboard, "auto_start_tensorboard is off")


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
    """Logs"""

    logging_dir: str | None = flag(
        None, "root of the logs; <output_dir>/logs if not given", idle=(NO_LOGS,), path=True)
    log_with: str = flag(
        "tensorboard", "where numbers go", choices=("none", "tensorboard", "wandb", "all")
    )
    log_prefix: str | None = flag(
        None, "start of the run folder's name; <output_name>_ if not given", idle=(NO_LOGS,)
    )
    log_every_n_steps: int = flag(
        10, "write the steps' numbers every n steps, all of them", check=at_least(1)
    )
    log_tracker_name: str | None = flag(
        None, "name of the tracker; network_train if not given", idle=(NO_LOGS,)
    )
    log_tracker_config: str | None = flag(
        None, "TOML with the trackers' own settings", idle=(NO_LOGS,), path=True)
    log_config: bool = flag(False, "log the settings too", idle=(NO_LOGS,))
    wandb_run_name: str | None = flag(None, "name of the wandb run", idle=(WANDB,))
    wandb_api_key: str | None = flag(None, "wandb key", idle=(WANDB,))
    auto_start_tensorboard: bool = flag(False, "serve TensorBoard during the run", idle=(NO_LOGS,))
    tensorboard_host: str = flag(
        "127.0.0.1",
        "its address",
        idle=(
            NO_LOGS,
            SERVED,
        ),
    )
    tensorboard_port: int = flag(
        6006,
        "its port, or the next free one",
        check=between(1, 65535),
        idle=(
            NO_LOGS,
            SERVED,
        ),
    )
    tensorboard_logdir: str = flag(
        "",
        "folder it shows; the root of the logs if not given",
        idle=(
            NO_LOGS,
            SERVED,
        ), path=True)
    console_log_level: str | None = flag(
        None, "detail of messages", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    )
    console_log_file: str | None = flag(None, "file for messages instead of the console", path=True)
    console_log_simple: bool = flag(False, "messages without time and level")
