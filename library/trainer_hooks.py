"""What a model family fills in so that train_network can train its model, or adapters on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from networks.arguments import parse_network_args
from networks.loading import Adapters

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library import strategy_base
    from library.data.data_types import TextOutputs
    from library.errors import Problem
    from library.memory.planning import Count
    from library.previews.schedule import Moment
    from library.settings.run_config import TrainConfig
    from library.training.flow_matching import NoisyLatents
    from networks.file_contents import FamilyFiles
    from networks.trained import Subject


class FamilyHooks(ABC):
    """Names are sd-scripts'; what they take and return is typed.

    family_files:     what programs know the family's adapter files by; None: nothing is said of them
    snapshot_schema:  of the snapshots that a family writes and takes
    pixels_per_token: of a picture, in the blocks
    """

    cfg: TrainConfig
    family_files: FamilyFiles | None = None
    snapshot_schema = "resume_snapshot/v2"
    pixels_per_token: int

    @property
    def strict_resume(self) -> bool:
        """Whether every difference between a state and the run is an error."""
        return False

    @abstractmethod
    def inspect_models(self) -> tuple[object, list[Problem]]:
        """What the model files are, by their headers, in a type of the family's; and what is wrong."""

    @abstractmethod
    def empty_model(self) -> nn.Module:
        """The denoiser on the meta device: all its modules, no memory."""

    @abstractmethod
    def choose_attention(self) -> str:
        """The kernel of attention, as the options say or the fastest of those that are right here."""

    @abstractmethod
    def load_target_model(self) -> nn.Module:
        """The denoiser, frozen, on the accelerator's device."""

    @abstractmethod
    def get_tokenize_strategy(self) -> strategy_base.TokenizeStrategy:
        """How a caption becomes token ids."""

    @abstractmethod
    def get_text_encoding_strategy(
        self, device: torch.device | None = None
    ) -> strategy_base.TextEncodingStrategy:
        """How token ids become what the denoiser is conditioned on; on the accelerator's device if None."""

    @abstractmethod
    def get_latents_caching_strategy(self) -> strategy_base.LatentsCachingStrategy:
        """How pixels become latents, and what a cache of them is valid for."""

    @abstractmethod
    def get_decoding_strategy(self, device: torch.device) -> strategy_base.LatentsCachingStrategy:
        """How latents that were drawn become pixels, on this device; it encodes for no cache."""

    @abstractmethod
    def get_text_encoder_outputs_caching_strategy(
        self,
    ) -> strategy_base.TextEncoderOutputsCachingStrategy:
        """How captions become what is stored of them, and what a cache of it is valid for."""

    @abstractmethod
    def memory_counter(self) -> Count:
        """What tells how many bytes a step of this run takes; nothing is loaded for it."""

    @abstractmethod
    def call_unet(self, noisy: NoisyLatents, conditioning: Any) -> Tensor:
        """The model's prediction, float32; the one place the model is called."""

    @abstractmethod
    def prompt_context(self, model: nn.Module, outputs: TextOutputs) -> Tensor:
        """What `model` reads of a prompt to draw, (1, T, X), made by what it has for that now.

        model:   of load_target_model, without a wrapper; dropout is the caller's affair
        outputs: of TextEncodingStrategy.encode_prompt
        """

    @abstractmethod
    def model_file_names(self) -> tuple[str, str, str]:
        """Of the denoiser, the text encoder and the VAE, as programs that draw list them."""

    def model_files_at(self, moment: Moment) -> tuple[str, str, str]:
        """The same of those that draw a moment's pictures again."""
        return self.model_file_names()

    def prompt_contexts_train(self) -> bool:
        """Whether training changes what prompt_context makes."""
        return True

    def get_subject(self) -> Subject:
        """What is trained: adapters, unless an entry trains something else."""
        return Adapters(self.cfg.network, self.network_kwargs())

    def network_kwargs(self) -> dict[str, Any]:
        """Arguments of the network: --network_args, and what a family adds from its own flags."""
        options = self.cfg.network
        rate = options.text_encoder_rate
        return parse_network_args(options.network_args) | ({"text_encoder_lr": rate} if rate else {})

    def option_groups(self) -> list[Any]:
        """All options of the run; a family adds its own."""
        return self.cfg.groups()

    def warnings(self) -> list[str]:
        """What should be told of the options before anything is loaded."""
        return []

    def warnings_of_length(self) -> list[str]:
        """What should be told of the options once the length of the run is known."""
        return []

    def differences(self) -> list[str]:
        """What other trainers would do otherwise with these options."""
        return []

    def finish_texts(self) -> None:
        """Make ahead what every step would make of the epoch's cached texts, if nothing there trains."""

    def update_metadata(self, entries: dict[str, str]) -> None:
        """Add the family's entries to the exported metadata."""

    def late_metadata(self) -> dict[str, str]:
        """Further entries, which take long to find: asked for when the first file is written."""
        return {}
