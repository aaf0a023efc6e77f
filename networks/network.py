"""AdapterNetwork: sd-scripts' network contract over adapters that live inside the model.

A handle, not a module: the model owns the adapters once attached, so nothing is registered twice.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from library.errors import AdapterFileError, ConfigError, Problem
from networks import network_words
from networks.codec import (
    DecodedFile,
    KeyDecoder,
    decode_tensors,
    encode,
    read_adapter,
    write_adapter,
)
from networks.kinds import mixing
from networks.kinds.adapter import NO_DROPOUT, AdaptedModule
from networks.kinds.copies import NO_COPIES
from networks.kinds.linear import copies_for
from networks.kinds.noise_ranks import Noise
from networks.kinds.stored import ALPHA, DORA_SCALE
from networks.network_settings import NetworkSettings, NormExport
from networks.norm_limit import limit_norms, limit_problems
from networks.placements import Placement, fill_from_file, linear_adapters, merge
from networks.precision import in_precision
from networks.trained import ROUNDED_AWAY, Trained

logger = logging.getLogger(__name__)


class AdapterNetwork(Trained):
    """All adapters of one run: attach them, train them, keep them, merge them."""

    def __init__(
        self, placements: Sequence[Placement], settings: NetworkSettings, multiplier: float = 1.0
    ) -> None:
        if all(placement.frozen for placement in placements):
            raise ConfigError(
                "nothing to train: no Linear and no norm is adapted, or every learning rate is 0. "
                "See target_modules, train_norm and the component learning rates."
            )
        norms = sum(placement.is_norm for placement in placements)
        if norms and settings.norm_export is NormExport.OMIT:
            raise ConfigError(
                f"norm_export = omit would leave {norms} norms out of the file that the adapters are "
                "trained with. Train none with --no-train_norm; or, to lose them knowingly, set "
                "norm_export = omit_trained."
            )
        self.placements = list(placements)
        self.settings = settings
        self.trainable_dtype = torch.float32
        self.model: nn.Module | None = None
        self.copies = NO_COPIES
        self.copying: list[RemovableHandle] = []
        self.set_multiplier(multiplier)

    def attach(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Put every adapter in place, the model frozen; factors in `dtype`."""
        self.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
        self.prepare_grad_etc(None, model)
        if dtype != self.trainable_dtype:
            self.cast_trainables(dtype)

    def apply_to(
        self,
        text_encoders: Any,
        unet: nn.Module,
        apply_text_encoder: bool = True,
        apply_unet: bool = True,
    ) -> None:
        """Freeze the whole of `unet` and put every adapter in place, those of a text encoder that it holds."""
        if not apply_unet:
            return
        assert self.model is None, "this network is already attached"
        unet.requires_grad_(False)
        for placement in self.placements:
            base = unet.get_submodule(placement.path)
            # where the model says that it computes: a swapped weight lies elsewhere
            device = getattr(unet, "device", base.get_parameter("weight").device)
            if device.type != "meta":
                placement.adapter.to(device)
            placement.adapter.fused = getattr(unet, "fused", False) and mixing.works(device)
            placement.adapter.requires_grad_(not placement.frozen)
            replace_submodule(unet, placement.path, placement.adapter.adopt(base))
        self.model = unet
        self.check_trainables()
        self.copy_factors_together()
        self.watch_noise()

    def copy_factors_together(self) -> None:
        """Let the model's passes use one copy of all factors in the dtype of its matrices."""
        dtype = next(p.dtype for p in self.attached().parameters() if not p.requires_grad)
        self.copies = copies_for(linear_adapters(self.trained()), dtype, self.attached())
        self.copying = self.copies.stand_before(self.attached())

    def watch_noise(self) -> None:
        """Let adapters know how much noise a pass of the model has."""
        noise = Noise()
        asking = [a for a in linear_adapters(self.trained()) if a.acts_by_noise]
        for adapter in asking:
            adapter.use_noise(noise)
        self.copying += noise.stand_before(self.attached()) if asking else []

    def remove(self) -> None:
        """Put the original modules back; the base stays frozen and the adapters stay filled."""
        for hook in self.copying:
            hook.remove()
        for placement in self.placements:
            adapted = self.attached().get_submodule(placement.path)
            assert isinstance(adapted, AdaptedModule)
            replace_submodule(self.attached(), placement.path, adapted.release())
        self.model = None

    def attached(self) -> nn.Module:
        assert self.model is not None, "call apply_to first"
        return self.model

    def set_multiplier(self, multiplier: float) -> None:
        """The strength of every adapter; 0 gives the base's output exactly."""
        self.multiplier = float(multiplier)
        for placement in self.placements:
            placement.adapter.multiplier = self.multiplier

    def scale_weight_norms(self, limit: float) -> dict[str, Tensor]:
        """Limit the norm of every trained Linear's difference; scalars for the log."""
        adapters = linear_adapters(self.trained())
        return limit_norms(adapters, limit) if adapters else {}

    def limit_problems(self, limit: float | None) -> list[Problem]:
        return limit_problems(linear_adapters(self.placements), limit)

    def prepare_grad_etc(self, text_encoder: Any, unet: nn.Module) -> None:
        """Establish what trains, whatever requires_grad_ calls came before."""
        self.attached().requires_grad_(False)
        for placement in self.placements:
            placement.adapter.requires_grad_(not placement.frozen)

    def within_pass(self) -> AbstractContextManager[None]:
        return self.copies.fresh()

    def unrecordable(self) -> str | None:
        drops = any(each.dropout != NO_DROPOUT for each in linear_adapters(self.trained()))
        by_noise = any(each.acts_by_noise for each in linear_adapters(self.trained()))
        what = "dropout is" if drops else "the ranks that act are" if by_noise else None
        return what and f"{what} not the same in each step"

    def set_training(self, active: bool) -> None:
        """Whether dropout is active."""
        for placement in self.placements:
            placement.adapter.train(active)

    def get_trainable_params(self) -> list[nn.Parameter]:
        return [factor for p in self.trained() for factor in p.adapter.factors().values()]

    def trained(self) -> list[Placement]:
        return [placement for placement in self.placements if not placement.frozen]

    def paths(self) -> list[str]:
        return [placement.path for placement in self.placements]

    def tensors(self) -> dict[str, Tensor]:
        return {name: each for p in self.placements for name, each in p.kept().items()}

    def kept(self) -> list[str]:
        """Of adapters that were trained or loaded."""
        kept = (p for p in self.placements if p.loaded or not p.frozen)
        return [name for placement in kept for name in placement.kept()]

    def needed(self) -> list[str]:
        return [name for placement in self.trained() for name in placement.kept()]

    def took(self, names: Collection[str]) -> None:
        filled = set(names)
        for placement in self.placements:
            is_filled = not filled.isdisjoint(placement.kept())
            placement.loaded |= placement.frozen and is_filled

    @torch.no_grad()
    def changes(self) -> list[Tensor | None]:
        return [placement.adapter.change_norm() for placement in self.placements]

    @property
    def uses_default_rate(self) -> bool:
        """Whether any adapter learns at the network's own rate."""
        return any(placement.lr is None for placement in self.trained())

    def prepare_optimizer_params(
        self, text_encoder_lr: Any, unet_lr: float | None, learning_rate: float | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Optimizer groups, one per rate, and their names; without any rate: no "lr" entry."""
        default = learning_rate if unet_lr is None else unet_lr
        groups: dict[tuple[str, float | None], list[nn.Parameter]] = {}
        for placement in self.trained():
            lr = default if placement.lr is None else placement.lr
            name, ratio = placement.rate_name, self.settings.loraplus_of(placement.is_of_text_encoder)
            for factor, parameter in placement.adapter.factors().items():
                if ratio and lr and factor == placement.adapter.zero_factor:
                    groups.setdefault((f"{name} plus", lr * ratio), []).append(parameter)
                else:
                    groups.setdefault((name, lr), []).append(parameter)
        described = [
            {"params": parameters} if lr is None else {"params": parameters, "lr": lr}
            for (_, lr), parameters in groups.items()
        ]
        return described, [name for name, _ in groups]

    def cast_trainables(self, dtype: torch.dtype) -> None:
        """Hold the factors in another dtype, by the user's explicit choice (full_bf16)."""
        logger.warning(ROUNDED_AWAY, "factors", dtype)
        for placement in self.placements:
            placement.adapter.to(dtype)
        self.trainable_dtype = dtype

    def check_trainables(self) -> None:
        """Assert that exactly the adapters train, in the dtype that was chosen. Free of cost."""
        actual = {n: p for n, p in self.attached().named_parameters() if p.requires_grad}
        expected = {name for placement in self.trained() for name in placement.parameter_names()}
        if actual.keys() != expected:
            difference = sorted(actual.keys() ^ expected)
            raise AssertionError(f"trainable tensors and adapters differ: {difference[:8]}")
        wrong = sorted(n for n, p in actual.items() if p.dtype != self.trainable_dtype)
        if wrong:
            raise AssertionError(
                f"trained in another dtype than {self.trainable_dtype}: {wrong[:8]}"
            )

    def save_weights(
        self, file: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None
    ) -> None:
        """Write the adapters in ComfyUI's spelling, whole or not at all; see write_adapter."""
        tensors = self.export_tensors(dtype or torch.float32)
        write_adapter(file, tensors, metadata or {})
        writes_norms = self.settings.norm_export is NormExport.DIFF
        if line := network_words.norms_line(self.placements) if writes_norms else "":
            logger.info(line)

    def export_tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Key -> tensor on the CPU: factors in `dtype` if it can hold them, alpha in float32.

        So are magnitudes, by which whole weights are multiplied.
        """
        factors: dict[str, Tensor] = {}
        exact: dict[str, Tensor] = {}
        for placement in self.exported():
            adapter = placement.adapter
            for name, factor in adapter.stored().items():
                key = encode(placement.path, name, kinds=self.settings.kinds)
                (exact if name == DORA_SCALE else factors)[key] = factor.cpu()
            if adapter.alpha is not None:
                exact[encode(placement.path, ALPHA)] = torch.tensor(adapter.alpha)
        return in_precision(factors, dtype) | exact

    def exported(self) -> list[Placement]:
        """What a file holds; not adapters that are untrained and unfilled: a difference of zero."""
        has_norms = self.settings.norm_export is NormExport.DIFF
        return [
            placement
            for placement in self.placements
            if (placement.loaded or not placement.frozen) and (has_norms or not placement.is_norm)
        ]

    def load_weights(self, file: str | Path) -> None:
        """Fill the adapters from a file. Raises AdapterFileError naming all that does not fit."""
        self.fill_from(read_adapter(file, self.settings.kinds), str(file))

    def fill_from(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Fill the adapters from a file's tensors."""
        settings = self.settings
        places = {placement.path for placement in self.placements}
        norms = {placement.path for placement in self.placements if placement.is_norm}
        decoder = KeyDecoder(
            places | settings.paths, norms=norms | settings.norms, kinds=settings.kinds
        )
        file = decode_tensors(tensors, decoder, source)
        check_kind(file, settings)
        fill_from_file(self.placements, file)

    @torch.no_grad()
    def merge_to(
        self,
        text_encoders: Any,
        unet: nn.Module,
        weights_sd: Mapping[str, Tensor] | None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Add the adapters (filled from `weights_sd`, if given) to the base weights for good.

        Computed in float32 on `device`, stored in `dtype` or the weights' own. Everything is
        checked to be finite before the first weight changes.
        """
        if weights_sd is not None:
            self.fill_from(weights_sd, "weights to merge")
        merge(self.placements, unet, dtype, device)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within: the adapters are added to the base weights and do not run. After: the same bits.

        Keeps every adapted weight beside its merged form, since subtracting does not restore bits.
        """
        model, multiplier = self.attached(), self.multiplier
        places = [(p, model.get_submodule(p.path)) for p in self.placements]
        kept = [
            (getattr(base, name), getattr(base, name).data)
            for placement, base in places
            for name in placement.adapter.changed
        ]
        try:
            self.merge_to(None, model, None)
            self.set_multiplier(0.0)
            yield
        finally:
            self.set_multiplier(multiplier)
            for parameter, original in kept:
                parameter.data = original

    @property
    def dim(self) -> int | None:
        """The rank, for the metadata: as asked for, else the one most adapters have."""
        ranks = Counter(adapter.rank for adapter in linear_adapters(self.placements))
        return self.settings.dim or (ranks.most_common(1)[0][0] if ranks else None)

    @property
    def alpha(self) -> float | None:
        """The alpha that most adapters train with and write; None when only norms train."""
        alphas = Counter(adapter.alpha for adapter in linear_adapters(self.placements))
        return alphas.most_common(1)[0][0] if alphas else None

    @property
    def network_args(self) -> dict[str, str]:
        """The effective arguments, for the metadata."""
        return dict(self.settings.network_args)

    def sizes(self) -> dict[str, float | None]:
        return {"network_dim": self.dim, "network_alpha": self.alpha}

    def options(self) -> dict[str, str]:
        return self.network_args

    def summary(self) -> list[str]:
        return network_words.summary(self.settings, self.placements)

    def in_short(self) -> str:
        return network_words.in_short(self.settings, self.placements)

    def described(self) -> str:
        return network_words.described(self.placements)


def replace_submodule(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def check_kind(file: DecodedFile, settings: NetworkSettings) -> None:
    """Raise AdapterFileError when the file is of another kind than the network."""
    if {*file.kinds} <= {settings.kind, *settings.used}:
        return
    if other := settings.modules.get(file.kind):
        advice = f"Use --network_module {other}."
    else:
        advice = "Several kinds are trained as network_reg_kinds says, or as dim_from_weights finds them."
    raise AdapterFileError(f"{file.source}: a {file.kind} file, not a {settings.name}. {advice}")
