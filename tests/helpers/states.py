"""A state folder with a little of everything, written for tests."""

from pathlib import Path

import torch

from library.data.data_types import RunPosition
from library.saving.state_folder import (
    StateContents,
    write_state,
)

SCHEMA = "family_resume_snapshot/v2"


def contents(**changes):
    values = {
        "position": RunPosition(step=7, epoch=1, batch_in_epoch=3, samples_seen=40),
        "run": {"seed": 3, "num_processes": 2, "metadata": {"ss_session_id": "9"}},
        "snapshot": {"schema": SCHEMA, "critical": {"名字": "值"}},
        "factors": {"a.adapter.lora_down": torch.arange(12.0).reshape(3, 4).bfloat16()},
        "training": {"optimizer": {"state": {0: {"step": torch.tensor(7.0), "m": (1, None)}}}},
        "ranks": [{"rng.torch": torch.arange(9, dtype=torch.uint8)}, {"rng.torch": torch.ones(2)}],
    }
    return StateContents(**{**values, **changes})


def written(folder, **changes) -> Path:
    write_state(folder / "run-state", contents(**changes))
    return folder / "run-state"
