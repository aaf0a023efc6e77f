"""What each process of a run does whose memory is short in one of them: started by tests/runs/test_processes.py.

python tests/helpers/short_ranks.py RANK STEP [trainer flags]

RANK: in which process, at STEP, the second micro-step of the first try does not fit.
"""

import json
import sys

import torch

from anima_train_network import AnimaNetworkTrainer, load_run
from library.memory import planning
from library.memory.modes import acting_modes


class ShortTrainer(AnimaNetworkTrainer):
    """On a card that is thought to have room for a step without memory options."""

    rank = at_step = passes = 0

    def memory_counter(self):
        return lambda loop: (5 if acting_modes(loop) else 4) * planning.GIB

    def call_unet(self, noisy, conditioning):
        prediction = super().call_unet(noisy, conditioning)
        if (self.accelerator.process_index, self.state.step) == (self.rank, self.at_step):
            self.passes += 1
            if self.passes == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return prediction


def main() -> None:
    rank, step, *argv = sys.argv[1:]
    train, datasets, anima, _ = load_run(argv)
    trainer = ShortTrainer(train, datasets, anima)
    trainer.rank, trainer.at_step = int(rank), int(step)
    trainer.train()
    seen = {"recomputing": trainer.base.recomputing, "taken": trainer.cheaper.taken}
    print(f"seen: {json.dumps(seen)}", file=sys.stderr)


if __name__ == "__main__":
    main()
