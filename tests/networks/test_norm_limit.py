"""--scale_weight_norms: the norm without the difference, and the limit kept."""

import json

import pytest
import torch

from networks.kinds.lokr import LoKr, lokr_shape
from networks.kinds.lora import LoRA
from networks.norm_limit import limit_norms
from tests.helpers.running import train


def adapters():
    made = [LoRA(24, 40, 4, 2.0)]
    for full, both in ((True, False), (False, True), (False, False)):
        shape = lokr_shape((24, 40), rank=2, factor=4, full_matrix=full, decompose_both=both)
        made.append(LoKr(shape, 2.0))
    generator = torch.Generator().manual_seed(0)
    for adapter in made:
        for factor in adapter.factors().values():
            factor.data.normal_(generator=generator)
    return made


@pytest.mark.parametrize("number", range(4))
def test_a_difference_that_is_too_long_is_cut_to_the_limit_and_keeps_its_direction(number):
    adapter = adapters()[number]
    before = adapter.delta().detach().clone()
    told = limit_norms([adapter], 0.5)
    after = adapter.delta().detach()
    assert after.norm().item() == pytest.approx(0.5, rel=1e-5)
    assert torch.allclose(after / after.norm(), before / before.norm(), atol=1e-6)
    assert told["max_norm/keys_scaled"] == 1
    limit_norms([adapter], 100.0)
    assert torch.equal(adapter.delta(), after)


def test_an_adapter_that_is_still_zero_stays_so():
    adapter = LoRA(8, 8, 2, 2.0)
    limit_norms([adapter], 1.0)
    assert not adapter.delta().any() and adapter.lora_down.isfinite().all()


@pytest.mark.parametrize("module", ["networks.lora_anima", "networks.lokr_anima"])
def test_a_run_keeps_the_limit_and_logs_it(demo, run_folder, module):
    settings = {"network_module": module, "learning_rate": 0.05, "scale_weight_norms": 0.3}
    trainer = train(demo, run_folder, settings)
    linears = [p.adapter for p in trainer.network.trained() if not p.is_norm]
    norms = torch.stack([adapter.delta().norm() for adapter in linears])
    assert norms.max() <= 0.3 * 1.001 and norms.max() > 0.29
    log = trainer.trackers.run_dir / "loss.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows[-1]["max_norm/keys_scaled"] > 0
