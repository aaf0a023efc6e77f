"""Anima: a Cosmos-Predict2-style DiT whose text context is made by an LLM adapter inside it.

Notable: sigma itself is the timestep, float32 into the sinusoid; a 17th input channel is the padding
mask, zero for training pictures; the text context is zero-padded to at least 512 rows and attended to
without a mask; patches go in ordered (channel, row, column) and come out (row, column, channel).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from library.anima_backend.modelling import text_encoder
from library.anima_backend.modelling.attention import FUNCTIONS, preferring
from library.anima_backend.modelling.compiled import CompiledBlocks
from library.anima_backend.modelling.glue import Open
from library.anima_backend.modelling.layers import (
    Attention,
    Block,
    FinalLayer,
    PatchEmbed,
    TimestepMLP,
    sinusoid,
)
from library.anima_backend.modelling.llm_adapter import AdapterAttention, LLMAdapter
from library.anima_backend.modelling.modulation import Modulation, Modulations
from library.anima_backend.modelling.padded_text import log_left_out, shortened
from library.anima_backend.modelling.params import EPS, DiTParams
from library.anima_backend.modelling.rope import image_rope, kept_image_rope
from library.memory.gradient_sums import shared
from library.memory.kept import Way
from library.memory.lanes import lane_of
from library.memory.offloading import RamStore
from library.memory.quantised import quantise_linears
from library.memory.recomputation import cheaply, recompute
from library.memory.replay import Recorder, Replays
from library.memory.side_by_side import lay_all
from library.memory.swapping import Swap, spread

MIN_CONTEXT = 512


class Anima(nn.Module):
    """Velocity from noisy latents, sigma and text. Module paths are the checkpoint's keys."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.params = params
        self.x_embedder = PatchEmbed(params)
        self.t_embedder = nn.Sequential(nn.Identity(), TimestepMLP(params.model_dim))
        self.t_embedding_norm = nn.RMSNorm(params.model_dim, eps=EPS)
        blocks = [Block(params) for _ in range(params.num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = FinalLayer(params)
        self.llm_adapter = LLMAdapter(params.llm_adapter)
        self.modulations = Modulations([each for block in blocks for each in block.modulations()])
        self.recomputing = ["nothing"] * params.num_blocks  # or "cheap" or "block"
        self.recomputes_text = False  # the layers of a text encoder that it holds
        self.keep_input: Way | None = None  # of a block of which nothing else is kept
        self.swap: Swap | None = None
        self.fused = False  # see use_one_kernel
        self.swapped: list[int] = []  # numbers of blocks
        self.unshared: set[int] = set()  # ids of weights that processes do not share
        self.compiled: CompiledBlocks | None = None
        self.recorded: Replays | None = None
        self.recorded_text: Replays | None = None
        self.kernel = "torch"  # of attention
        self.folds_text = False  # rows of zeros that pad texts are counted, not computed

    @property
    def num_blocks(self) -> int:
        return self.params.num_blocks

    @property
    def dtype(self) -> torch.dtype:
        return self.final_layer.linear.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.final_layer.linear.weight.device

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        qwen_hidden: Tensor | None = None,
        t5_ids: Tensor | None = None,
        *,
        qwen_mask: Tensor | None = None,
        t5_mask: Tensor | None = None,
        t5_weights: Tensor | None = None,
        context: Tensor | None = None,
        whole: bool = True,
    ) -> Tensor:
        """(B, 16, H, W) velocity; H, W even. sigma (B,) in [0, 1]. `context` given skips the adapter.

        whole: the context that is given has its rows of zeros
        In the model's dtype; float32 when that is float16, as the residual stream then is.
        """
        lacks_rows = self.folds_text and not (whole and context is not None)
        if context is None:
            assert qwen_hidden is not None and t5_ids is not None, "text, or its context"
            read = self.recorded_text or self.embedded
            context = read(qwen_hidden, t5_ids, qwen_mask, t5_mask, t5_weights)
        elif not whole:
            context = self.padded(context)
        log_zeros = None
        if lacks_rows:  # a compiled graph is for texts of all lengths, also those that lack none
            eager = self.compiled is None
            log_zeros = log_left_out(context, MIN_CONTEXT, or_none=eager)
        return (self.recorded or self.velocity)(latents, sigma, context, log_zeros)

    def embedded(
        self, qwen_hidden: Tensor, t5_ids: Tensor, *masks_and_weights: Tensor | None
    ) -> Tensor:
        """The text as it is attended to: text_rows, and rows of zeros."""
        return self.padded(self.text_rows(qwen_hidden, t5_ids, *masks_and_weights))

    def padded(self, rows: Tensor) -> Tensor:
        """A text with its rows of zeros, or with few of them where the others are to be counted."""
        return shortened(rows, MIN_CONTEXT) if self.folds_text else pad_context(rows)

    def velocity(
        self, latents: Tensor, sigma: Tensor, context: Tensor, log_zeros: Tensor | None = None
    ) -> Tensor:
        """Of `forward`, from the text's context; log_zeros: of how many rows it lacks, None: of none."""
        height, width = latents.shape[2] // self.params.patch, latents.shape[3] // self.params.patch
        x = self.x_embedder(F.pad(latents.to(self.dtype), (0, 0, 0, 0, 0, 1)))  # the mask channel
        if self.dtype == torch.float16:
            x = x.float()  # the residual stream outgrows float16
        features = sinusoid(sigma, self.params.model_dim).to(self.dtype)
        time = (self.t_embedding_norm(features), self.t_embedder(features))
        # what a recording uses belongs to it; a count finds what a step makes
        is_kept = self.recorded is None and not latents.is_meta
        rope = (kept_image_rope if is_kept else image_rope)(
            height, width, self.params.head_dim, latents.device
        )
        tables = rope if log_zeros is None else (*rope, log_zeros)
        context = context.to(self.dtype)
        if self.fused:
            context = shared(context)
        stream: Tensor | Open = x
        with preferring(self.kernel):
            for number, steered in enumerate(self.steered(time)):
                stream = self.run_block(number, stream, context, time, tables, steered)
        assert isinstance(stream, Tensor), "the last block leaves nothing open"
        patches = self.final_layer(stream, time).to(stream.dtype)  # (B, h*w, p*p*C)
        p = self.params.patch
        patches = patches.unflatten(1, (height, width)).unflatten(3, (p, p, -1))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def hold_text_encoder(self, encoder: nn.Module) -> None:
        """Let transformers' Qwen3Model be a part of the model, so that adapters of it train too.

        Before all modes and adapters. From then on the model takes ids where it takes hidden states.
        """
        text_encoder.hold(self, encoder, lambda: self.recomputes_text)

    def preprocess_text_embeds(
        self,
        qwen_hidden: Tensor,
        t5_ids: Tensor,
        *,
        qwen_mask: Tensor | None = None,
        t5_mask: Tensor | None = None,
        t5_weights: Tensor | None = None,
    ) -> Tensor:
        """The text context (B, max(512, T), X): the adapter's rows, zero where T5 is padded.

        qwen_hidden: (B, S, D), or ids (B, S) for the text encoder that the model holds
        t5_weights: (B, T), of a prompt that weighs its words; each row is multiplied by its own
        """
        return pad_context(self.text_rows(qwen_hidden, t5_ids, qwen_mask, t5_mask, t5_weights))

    def text_rows(
        self, qwen_hidden: Tensor, t5_ids: Tensor, qwen_mask: Tensor | None,
        t5_mask: Tensor | None, t5_weights: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The same without rows beyond the T of t5_ids."""
        if qwen_hidden.dtype == torch.long:
            encoder = text_encoder.held(self)
            assert encoder is not None, "ids are for a model that holds its text encoder"
            qwen_hidden = text_encoder.hidden_states(encoder, qwen_hidden, qwen_mask)
        rows = self.llm_adapter(qwen_hidden.to(self.dtype), t5_ids, qwen_mask, t5_mask)
        if t5_mask is not None:
            rows = rows * t5_mask.to(rows)[..., None]
        if t5_weights is not None:
            rows = rows * t5_weights.to(rows)[..., None]
        return rows

    def steered(self, time: tuple[Tensor, Tensor]) -> Sequence[Tensor | None]:
        """For each block what its modulations make of the time, (9, B, 1, D), or None: it asks them."""
        values = self.modulations(*time)
        if values is None:
            return [None] * len(self.blocks)
        return values.unflatten(0, (len(self.blocks), -1)).flatten(1, 2).unbind()

    def leaves_open(self, number: int) -> bool:
        """Whether a block's last sum is made with the next one's first norm: where neither is a whole."""
        if not self.fused or self.compiled is not None or self.swap is not None:
            return False
        both = self.recomputing[number : number + 2]
        return len(both) == 2 and "block" not in both

    def run_block(self, number: int, x: Tensor | Open, *others: object) -> Tensor | Open:
        block: Callable[..., Tensor] = self.blocks[number]
        mode = self.recomputing[number]
        if self.leaves_open(number):
            block = partial(block, leaves_open=True)
        if self.compiled is not None:
            block = partial(self.compiled, self.blocks[number])
        if self.swap is not None and number in self.swapped:
            block = partial(self.swap.run, self.swapped.index(number), block)
        if mode == "cheap" and self.compiled is None:  # compilers make this choice themselves
            return cheaply(block, x, *others)
        if mode == "block":
            block = partial(self.with_kernel, block)  # in the backward pass as well
            return recompute(block, x, *others, keep_first=self.keep_input)
        return block(x, *others)

    def with_kernel(self, block: Callable[..., Tensor], *inputs: object) -> Tensor:
        with preferring(self.kernel):
            return block(*inputs)

    def enable_gradient_checkpointing(
        self, cpu_offload: bool = False, *, mode: str = "block", every: int = 1
    ) -> None:
        """Compute parts of the blocks again in the backward pass; before the first forward.

        mode: "block", of a block only its input is kept; "cheap", what costs no matrix product is not
              kept. Calls add up: a block is as the last call that chose it says
        every: of so many blocks in a row the first is chosen, counted so that the last block is not,
               whose recomputation would find the others' tensors still in memory. With 1 the last one
               keeps what is not "cheap": that is all that its recomputation would leave
        cpu_offload: the inputs of blocks of mode "block" wait in RAM
        """
        assert mode in ("block", "cheap") and every > 0, (mode, every)
        self.recomputes_text |= mode == "block"
        last = len(self.blocks) - 1
        for number in range(last + 1 - every, -1, -every):
            self.recomputing[number] = "cheap" if mode == "block" and number == last else mode
        if cpu_offload:
            self.keep_input = RamStore(lane_of(self.device)).put

    def enable_block_swap(self, blocks: int, device: torch.device | str) -> None:
        """The weights of so many blocks wait in RAM, all else goes to `device`, unless it rests elsewhere
        than the model; before the first forward, or between two steps.

        Modulation's do with their block where they train; else, as all blocks need them at once, where all
        blocks are swapped. Processes do not share these weights: each has to load the same.
        """
        assert 0 < blocks <= len(self.blocks), blocks
        device = torch.device(device)
        self.swapped = spread(blocks, len(self.blocks))
        linears = self.modulations.linears()
        steering = {id(each) for each in linears if not each.get_parameter("weight").requires_grad}
        groups = [
            [
                part.weight for part in self.blocks[number].modules()
                if isinstance(part, nn.Linear) and id(part) not in steering
            ]
            for number in self.swapped
        ]  # fmt: skip
        away = {id(weight) for group in groups for weight in group}
        if steering and blocks == len(self.blocks) and self.modulations.wait_in_ram(device):
            away |= {id(linear.weight) for linear in linears}
        self.leave_unshared(away)
        home, before = self.device, self.swap.numbers if self.swap is not None else {}
        for parameter in self.parameters():
            rests = parameter.device != home and id(parameter) not in before
            if not (rests or id(parameter) in away):
                parameter.data = parameter.data.to(device)
        self.swap = Swap(groups, device)

    def lay_side_by_side(self) -> None:
        """Let one product be made of frozen matrices that see one input; after all modes."""
        lay_all(self, away=self.swap.numbers if self.swap is not None else ())

    def quantise(self, form: str, device: torch.device, *, llm_adapter: bool) -> None:
        """Store the blocks' frozen matrices in 8 bits; before adapters and all other modes.

        form: found on `device` and stored where they are; llm_adapter: its matrices too.
        Processes do not share these weights: each has to load the same.
        """
        for of_form, linears in self.forms_to_store(form, llm_adapter=llm_adapter):
            self.leave_unshared(map(id, quantise_linears(self, linears, of_form, device)))

    def forms_to_store(
        self, form: str, *, llm_adapter: bool
    ) -> list[tuple[str, dict[str, nn.Linear]]]:
        """The forms that `quantise` stores in, each with Linears by name.

        Modulation, which steers all tokens alike, is in int8 always: fp8 would double the velocity's error.
        """
        steering = {id(linear) for linear in self.modulations.linears()}
        modules = self.named_modules()
        few = {n: m for n, m in modules if isinstance(m, nn.Linear) and id(m) in steering}
        return [
            (form, self.linears_to_store(llm_adapter=llm_adapter)),
            ("int8", few),
        ]

    def linears_to_store(self, *, llm_adapter: bool) -> dict[str, nn.Linear]:
        """Those of the Linears that `quantise` stores whose products have a row for each token, by name."""
        parts = ("blocks.", "llm_adapter.") if llm_adapter else ("blocks.",)
        modules = dict(self.named_modules())
        left_out = {
            id(part)
            for module in modules.values()
            if isinstance(module, Modulation)
            for part in module
        }
        return {
            name: module
            for name, module in modules.items()
            if isinstance(module, nn.Linear)
            and name.startswith(parts)
            and id(module) not in left_out
        }

    def leave_unshared(self, weights: Iterable[int]) -> None:
        """Let processes not send each other these weights, given by their ids."""
        self.unshared.update(weights)
        names = [name for name, weight in self.named_parameters() if id(weight) in self.unshared]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)

    def compile_blocks(self, *, any_size: bool, **options: Any) -> None:
        """Call each block through torch.compile with these options; before the first forward.

        any_size: one graph serves all sizes of pictures and batches
        """
        self.compiled = CompiledBlocks(any_size=any_size, **options)

    def record_passes(
        self,
        trained: Iterable[Tensor],
        recorder: Callable[[], Recorder],
        *,
        state: Callable[[], Hashable] = tuple,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Record the LLM adapter and the blocks, each for itself; as `Replays` says, after the adapters attach.

        What reads texts is not recorded where the model holds a text encoder, whose code is transformers'.
        recorder: makes one; a recording of both needs memory of its own
        """
        held = text_encoder.held(self)
        readers = [self.llm_adapter, *([held] if held else [])]
        of_text = {id(parameter) for reader in readers for parameter in reader.parameters()}
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for each in trained:
            parts[id(each) in of_text].append(each)
        blocks, text = parts
        if text and held is None:
            self.recorded_text = Replays(self.embedded, text, recorder(), state=state, around=around)
        self.recorded = Replays(self.velocity, blocks, recorder(), state=state, around=around)

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Within: blocks are called as they are written."""
        compiled, self.compiled = self.compiled, None
        try:
            yield
        finally:
            self.compiled = compiled

    def use_one_kernel(self, fused: bool = True) -> None:
        """Norms with their rotations, and gates with the modulated norm after them, each in one kernel.

        Gradients of what several Linears use are added in their products.

        The device has to have them: see one_kernel.why_not
        """
        self.fused = fused
        for module in self.modules():
            if isinstance(module, (Attention, AdapterAttention, Block)):
                module.fused = fused

    def set_attention_backend(self, name: str) -> None:
        """One of kernels.KERNELS, for the DiT's attentions."""
        assert name in FUNCTIONS, name
        self.kernel = name
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = name


def pad_context(rows: Tensor) -> Tensor:
    """(B, T, X) with rows of zeros up to the least number that the blocks attend to."""
    return F.pad(rows, (0, 0, 0, max(0, MIN_CONTEXT - rows.shape[1])))
