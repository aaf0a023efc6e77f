"""The models that draw, one large one in memory at a time, and what each of them makes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import ImageOps
from PIL.Image import Resampling
from torch import Tensor, nn

from library.anima_backend.modelling.dit import Anima
from library.anima_runtime import model_loading, tokenizer_loading
from library.anima_runtime.attention_choice import untried_kernel
from library.anima_runtime.text_contexts import prompt_context
from library.data.data_types import TextOutputs
from library.data.images import image_to_tensor, load_image
from library.device_utils import LoadedOnUse
from library.errors import ConfigError
from library.previews.painting import Contexts, Drawing, developed, paint, undisturbed
from library.previews.prompt_file import PreviewPrompt
from library.previews.prompt_texts import words_of
from library.strategy_anima import (
    AnimaLatentsCachingStrategy,
    AnimaTextEncodingStrategy,
    AnimaTokenizeStrategy,
)
from networks.file_contents import has_text_encoder
from networks.overlay import Overlay, Strengths
from tools._drawing_order import Order

logger = logging.getLogger(__name__)

OnStep = Callable[[int, Tensor, Tensor], None]


class Studio:
    """Reads prompts, draws, and makes pictures of what was drawn.

    texts: what the text encoder made of each text; contexts: what the DiT as it is now reads of it
    starts: by size, the latents of the picture to change
    """

    def __init__(self, order: Order) -> None:
        """Loads everything but the VAE, which is loaded for the first picture."""
        self.order = order
        self.holds_encoder = any(map(has_text_encoder, order.adapter_files()))
        self.latents_strategy = AnimaLatentsCachingStrategy(
            LoadedOnUse(self.load_vae, order.device), "for drawing"
        )
        self.texts = self.read(words_of(order.prompts))
        self.starts = {
            size: self.encode_picture(order.options.image, size)
            for size in {(p.width, p.height) for p in order.prompts}
            if order.options.image
        }
        self.latents_strategy.free()  # room for the DiT
        self.contexts: dict[str, Tensor] = {}
        self.model = self.load_dit()
        self.overlay = Overlay(self.model)

    def read(self, texts: Sequence[str]) -> dict[str, TextOutputs]:
        """The text encoder's outputs, in the host's memory; the encoder is gone afterwards.

        Ids where an adapter changes it: then it stays in the DiT, which encodes them.
        """
        order = self.order
        folders = tokenizer_loading.folders_of(order.anima, order.files)
        tokenizer_loading.fetch_missing(order.anima, folders, order.facts)
        tokenize = AnimaTokenizeStrategy(*tokenizer_loading.load_both(folders, order.facts))
        encoder = LoadedOnUse(self.load_qwen, order.device)
        encoding = AnimaTextEncodingStrategy(tokenize, None if self.holds_encoder else encoder)
        made = {text: encoding.encode_prompt(tokenize.tokenize_prompt(text)) for text in texts}
        encoder.unload()
        return made

    def encode_picture(self, path: str, size: tuple[int | None, int | None]) -> Tensor:
        """(1, C, H, W): the latents of a picture scaled to cover `size`, and cut to it."""
        width, height = size
        assert width and height, "the order says the sizes"
        picture = ImageOps.fit(load_image(path), (width, height), Resampling.LANCZOS)
        return self.latents_strategy.encode(image_to_tensor(picture)[None]).cpu()

    def draw(self, prompt: PreviewPrompt, adapters: Strengths, on_step: OnStep) -> Tensor:
        """The latents (B, C, H, W) of a prompt, in the host's memory.

        Raises ConfigError where the device's memory is too short.
        """
        with self.enough_memory("lower --width, --height or --batch"):
            if self.overlay.lay(adapters):
                self.contexts.clear()
            negative = self.context(prompt.negative) if prompt.has_negative else None
            contexts = Contexts(self.context(prompt.prompt), negative)
            return paint(self.model, self.drawing(prompt), contexts, on_step).cpu()

    def drawing(self, prompt: PreviewPrompt) -> Drawing:
        order, size = self.order, (prompt.width, prompt.height)
        assert prompt.width and prompt.height and prompt.seed is not None, "the order says them"
        return Drawing(
            prompt,
            prompt.seed,
            self.latents_strategy.latents_shape(prompt.width, prompt.height, order.options.batch),
            start=self.starts.get(size),
            denoise=order.denoise,
            noise_on_device=order.options.step_noise == "device",
        )

    def context(self, text: str) -> Tensor:
        if text not in self.contexts:
            with undisturbed(self.model):
                self.contexts[text] = prompt_context(self.model, self.texts[text])
        return self.contexts[text]

    def develop(self, latents: Tensor) -> Tensor:
        """(B, H, W, 3) uint8, of one picture after the other."""
        rows = self.order.train.preview.vae_chunk_size
        with self.enough_memory("decode fewer rows at a time, --vae_chunk_size 4"):
            pictures = [developed(self.latents_strategy, one, rows) for one in latents.split(1)]
        return torch.cat(pictures)

    @contextmanager
    def enough_memory(self, advice: str) -> Iterator[None]:
        """Raises ConfigError with advice where the device's memory is too short inside."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            message = (
                f"the memory of {self.order.device} is too short: {advice}, or use --device cpu."
            )
            raise ConfigError(message) from error

    def load_dit(self) -> Anima:
        files, order = self.order.files, self.order
        kernel = untried_kernel(order.anima, order.device)
        logger.info("loading the DiT from %s", files.transformer)
        model = model_loading.load_transformer(
            files.transformer,
            device=order.device,
            dtype=order.dtype,
            llm_adapter_path=files.llm_adapter,
            disable_mmap=order.train.cache.disable_mmap_load_safetensors,
        )
        model.set_attention_backend(kernel)
        if self.holds_encoder:
            model.hold_text_encoder(self.load_qwen())
        return model.eval()

    def load_qwen(self) -> nn.Module:
        return self.load_encoder(model_loading.load_qwen, self.order.files.qwen, self.order.dtype)

    def load_vae(self) -> nn.Module:
        whole = self.order.train.cache.no_half_vae
        dtype = torch.float32 if whole else self.order.dtype
        return self.load_encoder(model_loading.load_vae, self.order.files.vae, dtype)

    def load_encoder(
        self, load: Callable[..., nn.Module], path: str, dtype: torch.dtype
    ) -> nn.Module:
        logger.info("loading %s", path)
        mmap_off = self.order.train.cache.disable_mmap_load_safetensors
        return load(path, device=self.order.device, dtype=dtype, disable_mmap=mmap_off)
