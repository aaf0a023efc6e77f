"""The flags that show how sigma is drawn, without a run."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.effects import needs
from library.settings.flags.flow import NORMAL_DRAWS, SAMPLING
from library.settings.options import flag, size

SHOWN = needs(lambda o: o.show_timesteps, "show_timesteps is not set")


@dataclass(frozen=True, kw_only=True)
class ShownDrawOptions:
    """How sigma is drawn, shown without a run"""

    show_timesteps: str | None = flag(
        None,
        "draw as training would, show it and exit; image: as <output_name>_timesteps.png in output_dir "
        "(sd-scripts: in a window)",
        choices=("console", "image"),
    )
    show_timesteps_resolution: str | None = flag(
        None,
        "size of the picture it is drawn for; the largest resolution of the run if not given "
        "(sd-scripts: 1024)",
        read=size,
        idle=(SHOWN, needs(lambda o: o.timestep_sampling == "flux_shift", SAMPLING)),
    )
    show_timesteps_offset: float | None = flag(
        None,
        "timestep_offset of the subset it is drawn for",
        idle=(SHOWN, needs(lambda o: o.timestep_sampling in NORMAL_DRAWS, SAMPLING)),
    )
