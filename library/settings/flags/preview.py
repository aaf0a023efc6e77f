"""The flags of previews."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.effects import needs
from library.settings.flags.shared import fits_epochs, fits_steps
from library.settings.options import at_least, flag

SAMPLERS = (  # ComfyUI's names, then those that sd-scripts has for the same, or for none of them
    "er_sde", "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2m",
    "dpmpp_2m_sde", "dpmpp_sde", "res_multistep", "ddim", "euler_a", "dpm_2_a", "dpmsolver++", "k_lms",
    "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a", "pndm", "dpmsolver", "dpmsingle",
)  # fmt: skip
PROMPTED = needs(lambda o: o.sample_prompts, "sample_prompts is not set")


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Previews: pictures drawn while training, as ComfyUI draws them"""

    sample_prompts: str | None = flag(
        None,
        "file of prompts to draw, .txt, .toml or .json; read again when it changes; without an interval "
        "the pictures are drawn at the end of the run (sd-scripts: never)",
        path=True,
    )
    sample_every_n_steps: int | None = flag(
        None,
        "draw every n steps",
        check=at_least(1),
        off=(0,),
        idle=(PROMPTED, fits_steps("sample_every_n_steps")),
    )
    sample_every_n_epochs: int | None = flag(
        None,
        "draw every n epochs, beside sample_every_n_steps (sd-scripts: instead of it)",
        check=at_least(1),
        off=(0,),
        idle=(PROMPTED, fits_epochs("sample_every_n_epochs")),
    )
    sample_at_first: bool = flag(
        False,
        "draw before the first step too",
        idle=(PROMPTED, needs(lambda o: not o.resume, "a run that goes on has its first step behind it")),
    )  # fmt: skip
    sample_sampler: str = flag(
        "er_sde",
        "sampler of prompts that name none (sd-scripts: ddim); pndm, dpmsolver and dpmsingle mean nothing "
        "for this kind of model, what is used instead is told",
        choices=SAMPLERS,
        idle=(PROMPTED,),
    )
    sample_on_cpu_vae: bool = flag(
        False, "decode the pictures on the CPU: slow, and takes no memory of the GPU", idle=(PROMPTED,)
    )
    vae_chunk_size: int | None = flag(
        None,
        "rows of latents that are decoded at a time, 8 pixels each; all if not given, or few where "
        "memory is too short for that",
        check=at_least(1),
        off=(0,),
        idle=(PROMPTED,),
    )
