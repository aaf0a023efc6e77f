"""The base models of a run: which files, and what their headers say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from library.anima_backend.modelling.params import DiTParams
from library.anima_runtime import model_loading
from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.text_path import TextEncoderSize
from library.device_utils import precision_dtype
from library.errors import UserError
from library.settings.run_config import TrainConfig


@dataclass(frozen=True)
class ModelFiles:
    """Files or folders. llm_adapter: None where it is in the transformer's file."""

    transformer: str
    vae: str
    qwen: str
    llm_adapter: str | None

    @staticmethod
    def of(train: TrainConfig, anima: AnimaConfig) -> ModelFiles:
        """From options that were checked: each that is needed is named."""
        transformer, vae, qwen = anima.anima_transformer, train.paths.vae, anima.qwen
        assert transformer and vae and qwen, "the options were checked"
        return ModelFiles(transformer, vae, qwen, anima.llm_adapter_path)

    def by_role(self) -> dict[str, str]:
        """All but the LLM adapter, by the names that metadata has for them."""
        return {"sd_model": self.transformer, "vae": self.vae, "qwen3": self.qwen}


@dataclass(frozen=True)
class ModelFacts:
    """What is needed of the headers. qwen_rows: of Qwen's table, that is how many ids it reads."""

    params: DiTParams
    qwen_rows: int


@dataclass
class Inspection:
    """What the headers say, and why the rest is None unless its file was not named."""

    params: DiTParams | None = None
    qwen_rows: int | None = None
    failures: list[UserError] = field(default_factory=list)

    @property
    def facts(self) -> ModelFacts | None:
        """Everything; None when something is missing."""
        if self.params is None or self.qwen_rows is None:
            return None
        return ModelFacts(self.params, self.qwen_rows)

    @contextlib.contextmanager
    def of_one_file(self) -> Iterator[None]:
        """While inside: what is wrong is kept, and the next file is looked at all the same."""
        try:
            yield
        except UserError as error:
            self.failures.append(error)


def dtype_of_vae(train: TrainConfig) -> torch.dtype:
    """The run's precision, unless --no_half_vae asks for float32."""
    if train.cache.no_half_vae:
        return torch.float32
    return precision_dtype(train.precision.mixed_precision)


def inspect_models(train: TrainConfig, anima: AnimaConfig) -> Inspection:
    """Each file that is named, by its header alone: is it what it should be, and do they fit?"""
    found, encoder = Inspection(), None
    if path := anima.qwen:
        with found.of_one_file():
            found.qwen_rows, width = model_loading.inspect_qwen(path)["embed_tokens.weight"]
            encoder = TextEncoderSize(path, found.qwen_rows, width)
    if path := train.paths.vae:
        with found.of_one_file():
            model_loading.inspect_vae(path)
    if path := anima.anima_transformer:
        with found.of_one_file():
            found.params, _ = model_loading.inspect_transformer(
                path, anima.llm_adapter_path, encoder
            )
    return found
