"""Train Anima itself: full fine-tuning.

accelerate launch anima_train.py --config_file train_args.toml --dataset_config dataset.toml
"""

from __future__ import annotations

from library.system import stop_signals

if __name__ == "__main__":  # before the imports that take seconds
    stop_signals.listen(stop_signals.while_importing)

from functools import partial

import torch

from anima_train_network import AnimaNetworkTrainer, main
from library.anima_runtime.command_line import MODEL
from library.anima_runtime.model_layout import layout_of
from library.device_utils import trained_dtype
from library.errors import Problem
from library.previews.schedule import Moment
from library.system.program import run_main
from networks._anima_arguments import component_of
from networks.whole_model import Whole, WholeModel


class AnimaTrainer(AnimaNetworkTrainer):
    """The same stages and loop, with the model itself as what is trained."""

    entry = MODEL
    family_files = None  # no adapters are written
    snapshot_schema = "anima_model_resume_snapshot/v1"

    def get_subject(self) -> Whole:
        return Whole(
            component_of=component_of,
            rates=self.anima.component_rates(),
            computed=self.weight_dtype,
            layout=partial(layout_of, self.model_files),
        )

    @property
    def loaded_dtype(self) -> torch.dtype:
        """The wider of what is held and what computes: nothing of the file is lost."""
        held = trained_dtype(self.cfg.precision)
        return max(held, self.weight_dtype, key=lambda dtype: dtype.itemsize)

    def assert_extra_args(self) -> list[Problem]:
        """Strengths of datasets too, which only adapters have."""
        given = {each.network_multiplier for each in self.datasets.datasets} - {1.0}
        message = "is a strength of adapters; the model itself is trained. Leave it out."
        where = f"network_multiplier = {max(given, default=1.0):g}"
        return [*super().assert_extra_args(), *([Problem(message, where)] if given else [])]

    def warnings(self) -> list[str]:
        """Those of learning rates: none has an effect where every part has a rate of its own."""
        assert isinstance(self.outline, WholeModel)
        acts = any(part.lr is None for part in self.outline.parts)
        if acts or "learning_rate" not in self.cfg.explicit:
            return []
        return ["--learning_rate has no effect: every part that trains has a rate of its own."]

    def differences(self) -> list[str]:
        """None: options of full fine-tuning mean what they mean in sd-scripts."""
        return []

    def adapters_at(self, moment: Moment, strength: float) -> list[tuple[str, float]]:
        """Those merged into the base, before the first step; then they are in the model's file."""
        return [] if moment.step else super().adapters_at(moment, strength)

    def model_files_at(self, moment: Moment) -> tuple[str, str, str]:
        base, encoder, vae = self.model_file_names()
        if not moment.step:
            return base, encoder, vae
        own = self.checkpoints.file_at(moment.step, moment.epoch, self.plan.total_steps)
        return own.name, encoder, vae

    def update_metadata(self, entries: dict[str, str]) -> None:
        super().update_metadata(entries)
        entries["modelspec.architecture"] = "anima"


if __name__ == "__main__":
    run_main(stop_signals.heeding(partial(main, AnimaTrainer)))
