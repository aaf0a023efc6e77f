"""What Anima is conditioned on: captions to tokens, tokens to Qwen states, pictures to latents.

A caption is encoded unpadded, as ComfyUI does it, and alone unless more of one length are asked for; padding and
masks appear only when a batch is put together. The T5 ids go to the LLM adapter, which runs inside the DiT's forward.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from library.anima_runtime import sd_scripts_caches, text_rows
from library.data.data_types import StoredTensor
from library.data.stored import UnfitFile
from library.device_utils import LoadedOnUse, to_device
from library.previews.prompts import parse_prompt
from library.strategy_base import (
    LatentsCachingStrategy,
    TextEncoderOutputsCachingStrategy,
    TextEncodingStrategy,
    TokenizeStrategy,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase, Qwen3Model

    from library.anima_backend.modelling.vae import QwenImageVAE
    from library.data.data_types import ImageInfo, TextOutputs
    from library.training.flow_matching import NoisyLatents

logger = logging.getLogger(__name__)

EMPTY_CAPTION = ("encode", "zeros")


@dataclass(frozen=True)
class AnimaTokens:
    """The ids of one caption, unpadded; neither is ever empty.

    t5_weights: one for each of the T5 ids, of a prompt that weighs words; None where all are 1
    """

    qwen_ids: tuple[int, ...]
    t5_ids: tuple[int, ...]
    t5_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class AnimaConditioning:
    """What a batch is conditioned on, padded at the right; masks are 1 at real positions.

    qwen_hidden: (B, S, D), last hidden states of Qwen after its final norm; ids (B, S) where adapters of
                 Qwen train, for the model to encode   qwen_mask: (B, S)
    t5_ids:      (B, T)   t5_mask: (B, T); all 0 for a caption whose context is zeros
    t5_weights:  (B, T), of captions that weigh words; None where captions do not
    """

    qwen_hidden: Tensor
    qwen_mask: Tensor
    t5_ids: Tensor
    t5_mask: Tensor
    t5_weights: Tensor | None = None

    def to(self, device: torch.device | str) -> AnimaConditioning:
        """The same conditioning on `device`."""
        weights = self.t5_weights
        return AnimaConditioning(
            qwen_hidden=to_device(self.qwen_hidden, device),
            qwen_mask=to_device(self.qwen_mask, device),
            t5_ids=to_device(self.t5_ids, device),
            t5_mask=to_device(self.t5_mask, device),
            t5_weights=None if weights is None else to_device(weights, device),
        )


@dataclass(frozen=True)
class AnimaContext:
    """The same where the LLM adapter has run before: context (B, T, X), zero where a caption ends."""

    context: Tensor

    def to(self, device: torch.device | str) -> AnimaContext:
        return AnimaContext(to_device(self.context, device))


def unescape(caption: str) -> str:
    r"""The caption with ComfyUI's escapes `\(` and `\)` as plain parentheses."""
    return caption.replace("\\(", "(").replace("\\)", ")")


class AnimaTokenizeStrategy(TokenizeStrategy):
    """Captions to the ids that ComfyUI would make of them.

    qwen_max_length, t5_max_length: upper limits in tokens (T5's includes its </s>); None cuts
    nothing. Cut captions are counted once each.
    weighs_words: captions are read as prompts are, (words:1.2); else parentheses are letters
    """

    def __init__(
        self,
        qwen_tokenizer: PreTrainedTokenizerBase,
        t5_tokenizer: PreTrainedTokenizerBase,
        *,
        qwen_max_length: int | None = None,
        t5_max_length: int | None = None,
        weighs_words: bool = False,
    ) -> None:
        self.qwen_tokenizer = qwen_tokenizer
        self.t5_tokenizer = t5_tokenizer
        self.qwen_max_length = qwen_max_length
        self.t5_max_length = t5_max_length
        self.weighs_words = weighs_words
        self._cut: dict[str, str] = {}

    def tokenize(self, caption: str) -> AnimaTokens:
        """The ids of one caption. "" gives Qwen's pad token and T5's </s>, one token each."""
        if self.weighs_words:
            return self.cut(caption, self.tokenize_prompt(caption))
        text = unescape(caption)
        qwen_ids = self.qwen_tokenizer(text).input_ids or [self.qwen_tokenizer.pad_token_id]
        t5_ids = self.t5_tokenizer(text).input_ids
        return self.cut(caption, AnimaTokens(tuple(qwen_ids), tuple(t5_ids)))

    def cut(self, caption: str, whole: AnimaTokens) -> AnimaTokens:
        """The tokens within the limits; T5's </s> stays at the end."""
        most, t5_ids, weights = self.t5_max_length, whole.t5_ids, whole.t5_weights
        if most is not None and len(t5_ids) > most:
            t5_ids = (*t5_ids[: most - 1], t5_ids[-1])
            weights = weights and (*weights[: most - 1], weights[-1])
        made = AnimaTokens(whole.qwen_ids[: self.qwen_max_length], t5_ids, weights)
        sizes = [(len(each.qwen_ids), len(each.t5_ids)) for each in (whole, made)]
        if sizes[0] != sizes[1]:
            (qwen, t5), (kept_qwen, kept_t5) = sizes
            self._cut[caption] = f"Qwen {qwen} -> {kept_qwen}, T5 {t5} -> {kept_t5}"
        return made

    @property
    def reading(self) -> tuple[object, ...]:
        """What ids depend on beside the tokenizers, for the identity of a cache."""
        lengths = (self.qwen_max_length, self.t5_max_length)
        return (*lengths, "weighs words") if self.weighs_words else lengths

    def tokenize_prompt(self, text: str) -> AnimaTokens:
        """The ids and weights that ComfyUI gives a prompt: each weighed piece is tokenized alone."""
        qwen_ids: list[int] = []
        t5_ids: list[int] = []
        weights: list[float] = []
        for piece, weight in parse_prompt(text):
            own = self.t5_tokenizer(piece).input_ids[:-1]  # its </s> stands once, at the end
            qwen_ids += self.qwen_tokenizer(piece).input_ids
            t5_ids += own
            weights += [weight] * len(own)
        end = self.t5_tokenizer("").input_ids
        is_weighed = any(weight != 1 for weight in weights)
        return AnimaTokens(
            tuple(qwen_ids or [self.qwen_tokenizer.pad_token_id]),
            (*t5_ids, *end),
            (*weights, *(1.0 for _ in end)) if is_weighed else None,
        )

    @property
    def cut_captions(self) -> int:
        """How many different captions were longer than a limit so far."""
        return len(self._cut)

    def warn_of_cut_captions(self) -> str:
        """Warn of the captions that were cut, if any, with an example; return what was said."""
        if not self._cut:
            return ""
        caption, lengths = next(iter(self._cut.items()))
        message = (
            f"{self.cut_captions} captions are longer than the token limit and were cut, for example"
            f' "{caption[:60]}..." ({lengths} tokens). Without --qwen3_max_token_length and'
            " --t5_max_token_length nothing is cut."
        )
        logger.warning(message)
        return message


def weights_of(tokens: AnimaTokens) -> Tensor:
    """(T,) float32, of the T5 ids."""
    return torch.tensor(tokens.t5_weights or (1.0,) * len(tokens.t5_ids))


class AnimaTextEncodingStrategy(TextEncodingStrategy):
    """Ids to Qwen's hidden states, and the padding of a batch.

    qwen_model:    None: ids are handed on, to a model that holds Qwen while adapters of it train
    empty_caption: "encode" gives "" the hidden state of one pad token, as ComfyUI does; "zeros"
    gives it a context of zeros, as other trainers do.
    """

    def __init__(
        self,
        tokenize: AnimaTokenizeStrategy,
        qwen_model: Qwen3Model | LoadedOnUse | None,
        *,
        empty_caption: str = "encode",
    ) -> None:
        assert empty_caption in EMPTY_CAPTION, empty_caption
        self.qwen_model = qwen_model
        self.weighs_words = tokenize.weighs_words
        self.zero_tokens = tokenize.tokenize("") if empty_caption == "zeros" else None

    def encode_tokens(self, tokens: AnimaTokens) -> TextOutputs:
        """qwen_hidden (S, D) in the encoder's dtype, or ids (S,); t5_ids (T,), t5_mask (T,); t5_weights
        (T,) where captions weigh words."""
        return self.encode_together([tokens])[0]

    @torch.no_grad()
    def encode_together(self, captions: Sequence[AnimaTokens]) -> list[TextOutputs]:
        """The same of each of several captions of one size, in one call of the encoder."""
        encoder, hidden = self.qwen_model, None
        if encoder is not None and not self.size_of(captions[0]):
            shape = len(captions), 1, encoder.config.hidden_size
            hidden = torch.zeros(shape, dtype=encoder.dtype).unbind()
        pairs = zip(captions, hidden or self.hidden_states(captions), strict=True)
        return [{**self.t5_outputs(tokens), "qwen_hidden": rows} for tokens, rows in pairs]

    def t5_outputs(self, tokens: AnimaTokens) -> TextOutputs:
        """All but qwen_hidden."""
        ids = torch.tensor(tokens.t5_ids)
        mask = torch.zeros_like(ids) if tokens == self.zero_tokens else torch.ones_like(ids)
        made = {"t5_ids": ids, "t5_mask": mask}
        return {**made, "t5_weights": weights_of(tokens)} if self.weighs_words else made

    def encode_prompt(self, tokens: AnimaTokens) -> TextOutputs:
        """qwen_hidden (S, D) in the encoder's dtype, or ids (S,); t5_ids (T,) and t5_weights (T,), on the
        CPU. Always alone, as ComfyUI encodes it."""
        return {
            "qwen_hidden": self.hidden_states([tokens])[0].cpu(),
            "t5_ids": torch.tensor(tokens.t5_ids),
            "t5_weights": weights_of(tokens),
        }

    def hidden_states(self, captions: Sequence[AnimaTokens]) -> Sequence[Tensor]:
        """(S, D) each, on the encoder's device; ids (S,) where the model encodes them."""
        if self.qwen_model is None:
            return [torch.tensor(tokens.qwen_ids) for tokens in captions]
        return text_rows.hidden_states(self.qwen_model, [tokens.qwen_ids for tokens in captions])

    def size_of(self, tokens: AnimaTokens) -> int:
        """Qwen's ids, equally many of captions that can be encoded together; 0: it is not asked."""
        return 0 if tokens == self.zero_tokens else len(tokens.qwen_ids)

    @staticmethod
    def collate(outputs: Sequence[TextOutputs]) -> AnimaConditioning | AnimaContext:
        """Pad at the right to the longest of the batch, with masks; or finished contexts, with zeros."""
        if "context" in outputs[0]:
            contexts = [output["context"] for output in outputs]
            return AnimaContext(pad_sequence(contexts, batch_first=True))
        hidden = [output["qwen_hidden"] for output in outputs]
        real = [torch.ones(len(rows), dtype=torch.long, device=rows.device) for rows in hidden]
        weights = [output["t5_weights"] for output in outputs if "t5_weights" in output]
        return AnimaConditioning(
            qwen_hidden=pad_sequence(hidden, batch_first=True),
            qwen_mask=pad_sequence(real, batch_first=True),
            t5_ids=pad_sequence([output["t5_ids"] for output in outputs], batch_first=True),
            t5_mask=pad_sequence([output["t5_mask"] for output in outputs], batch_first=True),
            t5_weights=pad_sequence(weights, batch_first=True) if weights else None,
        )


class AnimaLatentsCachingStrategy(LatentsCachingStrategy):
    """Pictures to the normalized mean of the VAE's posterior."""

    downscale = 8
    channels = 16

    def __init__(self, vae: QwenImageVAE | LoadedOnUse, identity: str) -> None:
        self.vae = vae
        self.identity = identity

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, 8H, 8W) in [-1, 1] -> (B, 16, H, W), float32 on the VAE's device."""
        return self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor, rows: int | None = None) -> Tensor:
        """(B, 16, H, W) -> (B, 3, 8H, 8W), float32 on the VAE's device; as ComfyUI, not clamped."""
        pixels: Tensor = self.vae.decode(latents.to(self.vae.device), rows)
        return pixels

    def free(self) -> None:
        if isinstance(self.vae, LoadedOnUse):
            self.vae.unload()

    def foreign_file(self, image: ImageInfo) -> Path | None:
        return sd_scripts_caches.find_latents(image.path, image.size)

    def read_foreign(self, image: ImageInfo, flipped: bool) -> Tensor | None:
        """From sd-scripts' file."""
        width, height = image.plan.bucket
        shape = self.channels, height // self.downscale, width // self.downscale
        return sd_scripts_caches.read_latents(image.path, image.size, shape, flipped)


class AnimaTextEncoderOutputsCachingStrategy(TextEncoderOutputsCachingStrategy):
    """Captions to what is stored of them: Qwen's states and T5 ids, so that the LLM adapter, which
    reads both, stays trainable.

    sizes: Qwen's width and the rows of the LLM adapter's T5 table; dtype: of Qwen's states
    """

    def __init__(
        self,
        tokenize: AnimaTokenizeStrategy,
        encoding: AnimaTextEncodingStrategy,
        identity: str,
        *,
        sizes: tuple[int, int],
        dtype: torch.dtype,
    ) -> None:
        self.tokenize = tokenize
        self.encoding = encoding
        self.identity = identity
        self.width, rows = sizes
        self.dtype = dtype
        self.layout = {
            "qwen_hidden": StoredTensor(("S", self.width)),
            "t5_ids": StoredTensor(("T",), below=rows),
            "t5_mask": StoredTensor(("T",), below=2),
        }
        if tokenize.weighs_words:
            self.layout["t5_weights"] = StoredTensor(("T",))

    def encode(self, caption: str) -> TextOutputs:
        return self.encode_together([caption])[0]

    def encode_together(self, captions: Sequence[str]) -> list[TextOutputs]:
        tokens = [self.tokenize.tokenize(caption) for caption in captions]
        return [
            {name: tensor.cpu().clone() for name, tensor in outputs.items()}  # not a view of its batch
            for outputs in self.encoding.encode_together(tokens)
        ]

    def size_of(self, text: str) -> int:
        return self.encoding.size_of(self.tokenize.tokenize(text))

    def is_even(self, text: str, rows: int) -> bool:
        encoder, length = self.encoding.qwen_model, self.size_of(text)
        return encoder is None or not length or text_rows.is_even(encoder, length, rows)

    def rest(self) -> None:
        if isinstance(self.encoding.qwen_model, LoadedOnUse):
            self.encoding.qwen_model.rest()

    def free(self) -> None:
        if isinstance(self.encoding.qwen_model, LoadedOnUse):
            self.encoding.qwen_model.unload()

    def foreign_file(self, picture: Path) -> Path | None:
        return sd_scripts_caches.find_text(picture)

    def read_foreign(self, picture: Path, caption: str) -> TextOutputs | None:
        """From sd-scripts' file, when it holds this caption as it is tokenized here."""
        found = sd_scripts_caches.read_text_outputs(picture)
        if found is None:
            return None
        tokens = self.tokenize.tokenize(caption)
        shape = len(tokens.qwen_ids), self.width
        is_same = found.t5_ids == tokens.t5_ids and found.hidden.shape == shape
        is_same &= not tokens.t5_weights  # those files have none
        if not is_same or tokens == self.encoding.zero_tokens:
            raise UnfitFile(f"{found.path}: was made for another caption or encoder.")
        hidden = found.hidden.to(self.dtype)
        return {**self.encoding.t5_outputs(tokens), "qwen_hidden": hidden}


def predict_velocity(
    dit: nn.Module, noisy: NoisyLatents, conditioning: AnimaConditioning | AnimaContext
) -> Tensor:
    """The DiT's velocity for noisy latents, (B, 16, H, W), float32.

    The LLM adapter, and a text encoder that trains, run inside this one call, so that gradients reach it and several processes see
    every trainable tensor in one forward. sigma goes in as float32.
    """
    if isinstance(conditioning, AnimaContext):
        context = conditioning.context
        return dit(noisy.latents, noisy.sigma, context=context, whole=False).float()
    prediction = dit(
        noisy.latents,
        noisy.sigma,
        conditioning.qwen_hidden,
        conditioning.t5_ids,
        qwen_mask=conditioning.qwen_mask,
        t5_mask=conditioning.t5_mask,
        t5_weights=conditioning.t5_weights,
    )
    return prediction.float()
