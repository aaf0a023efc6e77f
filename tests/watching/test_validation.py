"""The validation's arithmetic, where it runs."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from library.data.data_types import StepResult
from library.settings.flags.validation import ValidationOptions
from library.watching.validation import Validation
from tests.helpers.dataset_files import catalogue_of, folder_of


class OfADeviceWithoutFloat64(torch.Tensor):
    """Like a tensor on Apple's GPUs, which know no float64."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def to(self, *arguments, **keywords):
        assert torch.float64 not in arguments and keywords.get("dtype") != torch.float64
        return super().to(*arguments, **keywords)

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_the_mean_loss_needs_no_float64_on_the_device(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = folder_of(tmp_path / "set", [(64, 64)] * 6)
    held_out = catalogue_of(folder, dataset="validation_split = 0.5").validation()

    def process(batch, sigma):
        loss = (sigma + 1).as_subclass(OfADeviceWithoutFloat64)
        return StepResult(loss=loss.mean(), per_sample=loss, sigma=sigma, keys=batch.keys)

    values = Validation(held_out, ValidationOptions()).run(process, Accelerator(cpu=True))
    assert values["loss/validation/average"] == pytest.approx(1.5)
