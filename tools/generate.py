"""Draw pictures with the base model and adapter files, as ComfyUI draws them.

python tools/generate.py --config_file train_args.toml --prompt "1girl, smile" [--lora my.safetensors:0.8]
python tools/generate.py --config_file train_args.toml --prompts p.txt --lora my.safetensors --compare 0,0.5,1
python tools/generate.py --config_file train_args.toml --prompts p.txt --matrix a.safetensors b.safetensors

The three models come from a training file or from --dit, --qwen3 and --vae. Pictures go to drawings/,
each with its settings inside; --help shows every flag, docs/generate.md examples.
用底模和 LoRA 画图，结果与 ComfyUI 一致；示例见 docs/generate.md。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from library.system.program import EXIT_INTERRUPTED, close_bars, run_main
from library.utils import is_quiet, log_lines, setup_logging
from tools._drawing_gallery import Gallery
from tools._drawing_order import Order, read_order
from tools._drawing_plan import Piece, Plan, plan_of
from tools._drawing_studio import Studio

logger = logging.getLogger(__name__)


def generate(argv: Sequence[str]) -> list[Path]:
    """Draw what a command line orders; returns the files written, in order. Raises UserError."""
    order = read_order(argv)
    log = order.train.logging
    setup_logging(log.console_log_level, log.console_log_file, log.console_log_simple)
    log_lines(logger, order.notes, logging.WARNING)
    plan = plan_of(order)
    gallery = Gallery(order, plan)
    log_lines(logger, describe(order, plan))
    studio = Studio(order)
    for number, piece in enumerate(plan.pieces, 1):
        started = time.monotonic()
        latents = draw(studio, piece, f"{number}/{len(plan.pieces)}")
        files = gallery.hang(piece, latents, studio.develop(latents))
        seconds = time.monotonic() - started
        logger.info("%s: seed %d, %.1f s", ", ".join(map(str, files)), piece.prompt.seed, seconds)
    gallery.finish()
    return gallery.written


def draw(studio: Studio, piece: Piece, label: str) -> Tensor:
    """The latents of a piece, with a bar of its steps."""
    steps = len(studio.drawing(piece.prompt).course().sigmas) - 1
    with tqdm(total=steps, desc=label, unit="step", leave=False, disable=is_quiet()) as bar:

        def tick(step: int, latents: Tensor, clean: Tensor) -> None:
            bar.update()

        return studio.draw(piece.prompt, piece.adapters, tick)


def describe(order: Order, plan: Plan) -> list[str]:
    """What is about to be drawn, on what."""
    count = len(plan.pieces) * order.options.batch
    sizes = sorted({f"{prompt.width}x{prompt.height}" for prompt in order.prompts})
    what = f"{count} picture{'s' if count > 1 else ''} of {', '.join(sizes)}"
    grid = f", a grid of {len(plan.rows)} x {len(plan.columns)}" if plan.rows else ""
    dtype = str(order.dtype).removeprefix("torch.")
    return [f"{what}{grid}, on {order.device} in {dtype}"]


def main() -> int:
    try:
        generate(sys.argv[1:])
    except KeyboardInterrupt:
        close_bars()
        print("\nStopped. The pictures that were written stay.", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    run_main(main)
