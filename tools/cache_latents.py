"""Encode a run's pictures ahead of time; training with the same files then reuses everything.

python tools/cache_latents.py --config_file train_args.toml --dataset_config dataset.toml [any flag]

Takes the command line of anima_train_network.py. Latents go to _cache/ beside the pictures. Stop and
start it as you like: what is there and still fits is not made again.
参数与 anima_train_network.py 相同；提前把图片编码到图片旁边的 _cache/，可随时中断、继续。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

from collections.abc import Sequence

from library.caching.latents_cache import LatentsCache
from library.system.program import run_main
from tools._ahead import trainer_before_its_caches


def cache_latents(argv: Sequence[str]) -> LatentsCache:
    """Store the latents that the run of a command line needs."""
    return trainer_before_its_caches(argv, "cache_latents_to_disk").cache_latents()


def main() -> None:
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__, end="")
        return
    cache_latents(sys.argv[1:])


if __name__ == "__main__":
    run_main(main)
