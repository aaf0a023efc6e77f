"""What each process of tests/runs/test_processes.py does: run by torchrun, writes what it saw.

python -m torch.distributed.run --nproc_per_node 2 tests/helpers/ranks.py OUTPUT SAMPLES [trainer flags]

SAMPLES: pictures of one bucket, split evenly among the processes.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from anima_train_network import AnimaNetworkTrainer, load_run
from library.data.data_types import SampleRequest
from library.data.datasets import collate
from library.strategy_anima import AnimaLatentsCachingStrategy


class CountingTrainer(AnimaNetworkTrainer):
    """Counts the pictures that its VAE encodes."""

    encoded = 0

    def get_latents_caching_strategy(self) -> AnimaLatentsCachingStrategy:
        strategy = super().get_latents_caching_strategy()
        encode = strategy.encode

        def counting(pixels: Tensor) -> Tensor:
            self.encoded += len(pixels)
            return encode(pixels)

        strategy.encode = counting
        return strategy


def main() -> None:
    output, samples, *argv = sys.argv[1:]
    train, datasets, anima, _ = load_run(argv)
    trainer = CountingTrainer(train, datasets, anima)
    trainer.prepare()
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    epochs = [
        [[asdict(request) for request in batch] for batch in trainer.sampler]
        for epoch in range(2)
        if trainer.sampler.set_epoch(epoch) is None
    ]
    indices = [int(index) for index in samples.split(",")]
    share = indices[rank * len(indices) // world : (rank + 1) * len(indices) // world]
    batch = collate([trainer.dataset[SampleRequest(index, 0, 0)] for index in share])
    result = trainer.process_batch(batch)
    trainer.accelerator.backward(result.loss)
    parameters = dict(enumerate(trainer.network.get_trainable_params()))
    found = {f"gradient.{number}": p.grad.clone() for number, p in parameters.items()}
    trainer.update()
    found |= {f"weight.{number}": p.detach().clone() for number, p in parameters.items()}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found, folder / f"rank{rank}.safetensors")
    held = {f"{key} {flip}": tensors["latents"].sum().item()
            for (key, flip), tensors in sorted(trainer.dataset.latents.stored.items())}  # fmt: skip
    accelerator = trainer.accelerator
    ddp = [accelerator.ddp_handler.gradient_as_bucket_view, accelerator.ddp_handler.static_graph]
    seen = {
        "ddp": [accelerator.init_handler.timeout.total_seconds() / 60, *ddp],
        "latents": held,
        "encoded": trainer.encoded,
        "epochs": epochs,
        "sigma": result.sigma.tolist(),
        "seeds": list(batch.seeds),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
