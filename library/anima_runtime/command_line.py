"""From a command line to a checked configuration of a run on Anima."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from library.anima_runtime.config_adapter import (
    GROUPS,
    AnimaConfig,
    adapt,
    network_problems,
    run_notes,
)
from library.anima_runtime.family import ANIMA
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.config_util import read_datasets
from library.data.dataset_config import DatasetGroupConfig
from library.errors import ConfigError
from library.previews.prompt_texts import prompt_problems
from library.saving.output_checks import check_console_log
from library.settings.config_file import Parser, read_config
from library.settings.options import add_flags
from library.settings.run_config import TrainConfig
from library.settings.written_config import write_config
from library.training.optimizers import check_optimizer
from library.training.schedulers import check_schedule
from library.watching.trackers import check_logging


@dataclass(frozen=True)
class Entry:
    """A program that trains. whole: it trains the model itself"""

    file: str
    about: str
    whole: bool = False


ADAPTERS = Entry("anima_train_network.py", "Train a LoRA, LoKr or LoHa on Anima.")
MODEL = Entry("anima_train.py", "Train Anima itself: full fine-tuning.", whole=True)


@cache
def setup_parser(entry: Entry = ADAPTERS) -> Parser:
    """Every flag of the trainer."""
    usage = f"accelerate launch {entry.file} --config_file FILE --dataset_config FILE ..."
    parser = Parser(prog=entry.file, usage=usage, description=entry.about)
    for group in GROUPS:
        add_flags(parser, group)
    return parser


def load_run(
    argv: Sequence[str], entry: Entry = ADAPTERS
) -> tuple[TrainConfig, DatasetGroupConfig, AnimaConfig, list[str]]:
    """Everything the user wrote, checked; all problems of flags and both files in one ConfigError."""
    loaded = read_config(setup_parser(entry), argv, GROUPS)
    groups = {name: loaded.groups[group] for name, group in SHARED_GROUPS.items()}
    train = TrainConfig(**groups, explicit=loaded.explicit, whole=entry.whole)
    if train.files.output_config:
        loaded.require()
        print(f"written: {write_config(loaded)}")
        sys.exit()
    train, anima, problems = adapt(train, loaded.groups[AnimaConfig], loaded.explicit)
    loaded.add([
        *problems,
        *train.check(),
        *network_problems(train, anima),
        *check_optimizer(train.optimizer, train.schedule),
        *check_schedule(train.schedule),
        *check_logging(train.logging),
        *check_console_log(train.logging),
        *prompt_problems(train.preview),
    ])  # fmt: skip
    datasets: DatasetGroupConfig | None = None
    if not train.dataset_problems():
        try:
            fallbacks = {n: v for n, v in train.flat().items() if n in loaded.explicit}
            datasets = read_datasets(train.files.dataset_config, fallbacks, ANIMA.foreign_message)
        except ConfigError as error:
            loaded.add(error.problems)
    loaded.require()
    assert datasets is not None, "else a problem was told"
    notes = [*loaded.notes, *run_notes(train, anima, loaded.explicit, datasets)]
    return train, datasets, anima, notes
