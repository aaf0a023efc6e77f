"""Between log points no step waits for the device; what does wait, and where, is told exactly."""

import pytest

from tests.helpers.reads import CountReads
from tests.helpers.running import config_files, trainer_at_its_first_step

NETWORKS = {
    "lora": {"scale_weight_norms": 1.0},
    "lokr": {
        "network_module": "networks.lokr_anima",
        "network_args": ["lokr_factor=4"],
        "optimizer_type": "SGDNesterov",
    },
}


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_step_reads_the_device_between_log_points(demo, run_folder, network, cached):
    """Monitor on, validation between the steps. Without a cache each caption is encoded, without a mask,
    which the text encoder's library would read."""
    settings = {
        **NETWORKS[network], "mixed_precision": "bf16", "log_every_n_steps": 1000,
        "cache_latents": cached, "cache_text_encoder_outputs": cached,
        "gradient_accumulation_steps": 2, "validate_every_n_steps": 1000,
    }  # fmt: skip
    argv = config_files(
        demo, run_folder, settings, batch_size=1, dataset="validation_split = 0.3", flip_aug=True
    )
    trainer, windows = trainer_at_its_first_step(argv)
    trainer.train_step(windows[0])
    with CountReads() as counter:
        for window in windows[1:3]:
            trainer.train_step(window)
            trainer.after_step()
    assert counter.places == []
    with CountReads() as counter:
        trainer.validate()
    validation = "library.watching.validation"
    assert counter.places == [f"{validation}.sums_of: cpu", f"{validation}.run: tolist"]
