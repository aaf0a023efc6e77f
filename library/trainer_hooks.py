"""What a model family fills in so that train_network can train adapters on its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from networks.arguments import parse_network_args

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library import strategy_base
    from library.settings.run_config import TrainConfig
    from library.training.flow_matching import NoisyLatents


class FamilyHooks:
    """Names are sd-scripts'; what they take and return is typed."""

    cfg: TrainConfig

    def empty_model(self) -> nn.Module:
        """The denoiser on the meta device: all its modules, no memory."""
        raise NotImplementedError

    def load_target_model(self) -> nn.Module:
        """The denoiser, frozen, on the accelerator's device."""
        raise NotImplementedError

    def get_tokenize_strategy(self) -> strategy_base.TokenizeStrategy:
        raise NotImplementedError

    def get_text_encoding_strategy(self) -> strategy_base.TextEncodingStrategy:
        raise NotImplementedError

    def get_latents_caching_strategy(self) -> strategy_base.LatentsCachingStrategy:
        raise NotImplementedError

    def get_text_encoder_outputs_caching_strategy(
        self,
    ) -> strategy_base.TextEncoderOutputsCachingStrategy:
        raise NotImplementedError

    def call_unet(self, noisy: NoisyLatents, conditioning: Any) -> Tensor:
        """The model's prediction, float32; the one place the model is called."""
        raise NotImplementedError

    def network_kwargs(self) -> dict[str, Any]:
        """Arguments of the network: --network_args, and what a family adds from its own flags."""
        return parse_network_args(self.cfg.network.network_args)

    def warnings(self) -> list[str]:
        """What should be told of the options before anything is loaded."""
        return []

    def warnings_of_length(self) -> list[str]:
        """What should be told of the options once the length of the run is known."""
        return []

    def differences(self) -> list[str]:
        """What other trainers would do otherwise with these options."""
        return []

    def update_metadata(self, entries: dict[str, str]) -> None:
        """Add the family's entries to the exported metadata."""
