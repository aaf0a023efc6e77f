"""Encode a run's captions ahead of time; training with the same files then reuses everything.

python tools/cache_text_encoder_outputs.py --config_file train_args.toml --dataset_config dataset.toml
    [any flag]

Takes the command line of anima_train_network.py. The texts go to _cache/ beside the pictures, up to
--text_cache_variants of them; a run with more encodes the later ones while it trains.
参数与 anima_train_network.py 相同；提前把标注编码到图片旁边的 _cache/，最多 --text_cache_variants 条。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

from collections.abc import Sequence

from library.caching.text_windows import TextWindows
from library.errors import ConfigError
from library.system.program import run_main
from tools._ahead import trainer_before_its_caches


def cache_text(argv: Sequence[str]) -> TextWindows:
    """Store the texts that the run of a command line needs first."""
    trainer = trainer_before_its_caches(argv, "cache_text_encoder_outputs_to_disk")
    if trainer.cfg.loop.seed is None and trainer.run_texts().vary:
        raise ConfigError(
            "no seed is given, but captions are shuffled or dropped: training would draw a seed of "
            "its own and so other captions. Set seed, here and there."
        )
    return trainer.cache_text()


def main() -> None:
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__, end="")
        return
    cache_text(sys.argv[1:])


if __name__ == "__main__":
    run_main(main)
