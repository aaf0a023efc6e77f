"""It learns: at fixed noise and sigmas the loss of each kind of adapter falls clearly."""

import pytest
import torch

from library.data.datasets import collate
from tests.helpers.running import config_files, make_trainer

SIGMAS = (0.2, 0.5, 0.8)
KINDS = {
    "lora": {"network_dim": 8, "network_alpha": 8, "learning_rate": 2e-3, "max_train_steps": 24},
    "lokr": {
        "network_module": "networks.lokr_anima",
        "network_args": ["lokr_factor=4"],
        "network_dim": 100000,
        "learning_rate": 2e-3,
        "max_train_steps": 24,
    },
    "norms": {
        "network_args": ["target_modules=none"],
        "learning_rate": 1e-2,
        "max_train_steps": 60,
    },
}


@torch.no_grad()
def fixed_loss(trainer) -> float:
    """The mean loss over all pictures at fixed noise and sigmas."""
    losses = []
    for requests in trainer.sampler.batches(0):
        batch = collate([trainer.dataset[request] for request in requests])
        for sigma in SIGMAS:
            given = torch.full((len(batch.keys),), sigma)
            losses.append(trainer.process_batch(batch, sigma=given).loss.item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls(demo, run_folder, kind):
    settings = {**KINDS[kind], "log_every_n_steps": 50}
    trainer = make_trainer(config_files(demo, run_folder, settings, batch_size=4))
    trainer.prepare()
    before = fixed_loss(trainer)
    trainer.run_epochs()
    after = fixed_loss(trainer)
    assert after < 0.85 * before, f"{before:.3f} -> {after:.3f}"
