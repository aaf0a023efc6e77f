"""The flags of precision and speed."""

from __future__ import annotations

from dataclasses import dataclass

from library.errors import Problem
from library.settings.effects import Idle, needs
from library.settings.flags.shared import NOT_SD
from library.settings.options import at_least, between, flag, word

PER_BLOCK = "compile does it, block by block"
DYNAMO = (
    "eager",
    "aot_eager",
    "inductor",
    "aot_ts_nvfuser",
    "nvprims_nvfuser",
    "cudagraphs",
    "ofi",
    "fx2trt",
    "onnxrt",
    "tensort",
    "ipex",
    "tvm",
)
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""The modes of compile that record them."""
CHOOSING = ("inductor", "aot_eager")
"""The backends of compile that ask torch what to keep for the backward pass."""
UNCOMPILED = needs(lambda o: o.compile, "compile is not set")


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Precision and speed"""

    mixed_precision: str = flag("no", "precision of the base model", choices=("no", "fp16", "bf16"))
    full_bf16: bool = flag(
        False, "what trains is in bf16 too, adapters or model: small updates are lost"
    )
    stochastic_rounding: bool = flag(
        False,
        "round what full_bf16 keeps up or down by chance, so that on average no update is lost; with "
        "AdamW and Adafactor",
        idle=(needs(lambda o: o.full_bf16, "full_bf16 is not set"),),
    )
    full_fp16: bool = flag(
        False, "adapters in fp16 too", refused="updates would be lost; leave adapters in float32"
    )
    fp8_base: bool = flag(
        False, "store the frozen matrices of blocks and LLM adapter in fp8: other results"
    )
    fp8_base_unet: bool = flag(
        False, "the same of the blocks alone, for which int8_base and nf4_base have no option",
        idle=(Idle(lambda o: o.fp8_base, "fp8_base stores the blocks so as well"),),
    )  # fmt: skip
    int8_base: bool = flag(False, "as fp8_base, in int8: a third of its error")
    int8_compute: str | None = flag(
        None,
        "products with these matrices in int8 too, rotated: where that is faster than without "
        "int8_base (auto), or wherever it works (always)",
        choices=("auto", "always"),
        idle=(needs(lambda o: o.int8_base, "only int8_base has matrices in int8"),),
    )
    nf4_base: bool = flag(
        False, "as fp8_base, in 4 bits by bitsandbytes (NF4): three and a half times its error"
    )
    cuda_allow_tf32: bool = flag(False, "allow TF32 products")
    cuda_cudnn_benchmark: bool = flag(False, "let cuDNN try its algorithms")
    deterministic: bool = flag(False, "deterministic kernels only: slower, repeatable to the bit")
    torch_compile: bool = flag(False, "compile the model", ignored=PER_BLOCK)
    dynamo_backend: str = flag(
        "inductor", "backend of torch_compile", choices=DYNAMO, off=("no",), ignored=PER_BLOCK
    )
    compile: bool = flag(False, "compile each block: a slow start, then faster steps")
    compile_optional: bool = flag(
        False, "where compile cannot work, train without it", idle=(UNCOMPILED,)
    )
    compile_backend: str = flag("inductor", "backend of compile", idle=(UNCOMPILED,))
    compile_mode: str = flag(
        "default", "mode of compile",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        idle=(
            UNCOMPILED,
            needs(lambda o: o.compile_backend == "inductor", "only compile_backend inductor has modes"),
        ),
    )  # fmt: skip
    compile_dynamic: str | None = flag(
        None,
        "one graph for all sizes (true), or one for each (false); auto: for all if there are several",
        choices=("true", "false", "auto"),
        read=word,
        off=("auto",),
        idle=(UNCOMPILED,),
    )
    compile_fullgraph: bool = flag(
        False, "an error where a block is more than one graph", idle=(UNCOMPILED,)
    )
    compile_cache_size_limit: int | None = flag(
        None,
        "graphs kept (32); a block that would need another runs uncompiled",
        check=at_least(1),
        off=(0,),
        idle=(UNCOMPILED,),
    )
    activation_memory_budget: float = flag(
        1.0,
        "share of activations that compiled blocks keep; below 1 they recompute the rest",
        check=between(0, 1),
        idle=(
            UNCOMPILED,
            needs(
                lambda o: o.compile_backend in CHOOSING,
                "only compile_backend inductor and aot_eager choose what is kept",
            ),
        ),
    )
    cuda_graphs: bool = flag(
        False, "record a step of each size and start it as a whole: where the card waits for the processor"
    )
    mem_eff_attn: bool = flag(
        False, "attention of Stable Diffusion's U-Net",
        ignored=f"{NOT_SD}; gradient_checkpointing saves memory",
    )  # fmt: skip

    @property
    def compile_records(self) -> str | None:
        """The option by which compile records CUDA graphs, as it is written; None: it does not."""
        if not self.compile:
            return None
        if self.compile_backend == "cudagraphs":
            return "compile_backend = cudagraphs"
        if self.compile_backend == "inductor" and self.compile_mode in CUDA_GRAPHS:
            return f"compile_mode = {self.compile_mode}"
        return None

    @property
    def stored_form(self) -> str | None:
        """How frozen matrices are stored; None: as mixed_precision says."""
        if self.int8_base:
            return "int8_rotated" if self.int8_compute else "int8"
        if self.nf4_base:
            return "nf4"
        return "fp8" if self.fp8_base or self.fp8_base_unet else None

    @property
    def probes_int8(self) -> bool:
        """Whether int8_compute is left to how fast it is."""
        return self.int8_base and self.int8_compute == "auto"

    @property
    def stores_unet_only(self) -> bool:
        """Whether the LLM adapter stays as mixed_precision says."""
        return not (self.fp8_base or self.int8_base or self.nf4_base)

    def storage_problems(self) -> list[Problem]:
        names = ("fp8_base", "fp8_base_unet", "int8_base", "nf4_base")
        asked = [name for name in names if getattr(self, name)]
        found = []
        if len(asked) > 1 and (self.int8_base or self.nf4_base):
            message = f"weights have one form: keep one of {', '.join(asked)}."
            if self.fp8_base_unet:
                message += " Only fp8_base_unet leaves the LLM adapter as mixed_precision says."
            found.append(Problem(message, f"{asked[0]} = true"))
        if asked and self.mixed_precision == "no":
            message = "needs mixed_precision = bf16 or fp16."
            found.append(Problem(message, f"{asked[0]} = true"))
        return found

    def problems(self) -> list[Problem]:
        found = self.storage_problems()
        if self.full_bf16 and self.mixed_precision != "bf16":
            found.append(Problem("needs mixed_precision = bf16.", "full_bf16 = true"))
        if self.deterministic and self.cuda_cudnn_benchmark:
            message = "chooses kernels by their speed, anew in each run. Leave it out."
            found.append(Problem(message, "cuda_cudnn_benchmark = true with deterministic"))
        return found
