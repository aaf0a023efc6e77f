"""What the two caching tools share: a trainer from a training run's command line, up to its caches."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from anima_train_network import AnimaNetworkTrainer, load_run, make_trainer

logger = logging.getLogger(__name__)


def trainer_before_its_caches(argv: Sequence[str], option: str) -> AnimaNetworkTrainer:
    """Checked, its pictures known and its encoders not yet loaded; `option` is turned on for it.

    Says so when the training run itself would not read what is stored.
    """
    asked = getattr(load_run(argv)[0].cache, option)
    trainer = make_trainer([*argv, f"--{option}"])
    if not asked:
        logger.warning("Training reads these files only with %s = true: set it there too.", option)
    trainer.prepare_process()
    trainer.open_state()
    trainer.check()
    trainer.prepare_data()
    trainer.prepare_strategies()
    return trainer
