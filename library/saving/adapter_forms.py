"""The forms in which adapters are written, and how a written file is compared with them.

ComfyUI's form holds what was trained. The universal one is for programs that read less; see
networks/workshop/universal.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from library.device_utils import precision_dtype
from library.errors import UserError
from library.saving.form import Form
from networks.codec import read_adapter, write_adapter
from networks.kinds.linear import AdditiveAdapter
from networks.network_settings import NormExport
from networks.precision import in_precision
from networks.workshop.low_rank import RankRule
from networks.workshop.universal import Universal, delta_of_adapter, universal
from networks.workshop.verifying import Written, differences

if TYPE_CHECKING:
    from library.settings.flags.save import SaveOptions
    from networks.network import AdapterNetwork

DEFAULT_RANK = 64
"""Of a LoRA in place of something else."""


class AdapterForm(Form):
    """One spelling of the adapters in a file."""

    def __init__(self, options: SaveOptions, network: AdapterNetwork) -> None:
        self.network = network
        self.dtype = precision_dtype(options.save_precision or "float")

    def written(self) -> Written:
        """What a file of it should hold."""
        return Written(self.dtype)

    def wrong_with(self, file: Path) -> list[str]:
        try:
            tensors = read_adapter(file, self.network.settings.kinds)
        except UserError as error:
            return [problem.message.rstrip(".") for problem in error.problems]
        return differences(self.network, tensors, self.written())

    def left_out(self) -> str:
        norms = 0 if self.has_norms() else trained_norms(self.network)
        text = 0 if self.has_text_encoder() else trained_of_text_encoder(self.network)
        parts = [f"the {norms} norms that were trained"] if norms else []
        parts += [f"the {text} modules of the text encoder"] if text else []
        return f"{' and '.join(parts)} are not in it" if parts else ""

    def has_norms(self) -> bool:
        return False

    def has_text_encoder(self) -> bool:
        return False


class ComfyForm(AdapterForm):
    def has_norms(self) -> bool:
        return self.network.settings.norm_export is not NormExport.OMIT_TRAINED

    def has_text_encoder(self) -> bool:
        return True

    def write(self, file: Path, metadata: Mapping[str, str]) -> None:
        self.network.save_weights(file, self.dtype, metadata)

class UniversalForm(AdapterForm):
    def __init__(self, options: SaveOptions, network: AdapterNetwork) -> None:
        super().__init__(options, network)
        self.says_more, self.asked = not options.no_metadata, options.export_rank
        self.rule = RankRule(rank=options.export_rank or DEFAULT_RANK)
        self.made = Universal({})

    def prepare(self) -> None:
        adapters = {
            placement.path: placement.adapter
            for placement in self.network.exported()
            if isinstance(placement.adapter, AdditiveAdapter) and not placement.is_of_text_encoder
        }
        deltas = {path: delta_of_adapter(adapter) for path, adapter in adapters.items()}
        cut = {path for path, adapter in adapters.items() if is_cut(adapter, self.asked)}
        self.made = universal(deltas, self.rule, cut)

    def write(self, file: Path, metadata: Mapping[str, str]) -> None:
        write_adapter(file, in_precision(self.made.tensors, self.dtype), metadata)

    def written(self) -> Written:
        return Written(
            self.dtype, has_norms=False, has_text_encoder=False, errors=self.made.errors
        )  # fmt: skip

    def metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Of the LoRA that it holds, whose scale is 1; ss_network_args stay those of the training."""
        settings, errors = self.network.settings, self.made.errors
        rank = self.rule.rank if errors else self.network.dim
        true = {"ss_network_dim": str(rank), "ss_network_alpha": str(float(rank or 1))}
        if errors:
            true["ss_network_module"] = settings.modules.get("LoRA", "")
        more = {"ss_export_format": "universal"}
        if errors:
            more["ss_export_error"] = f"{self.made.error:.6f}"
        return {**metadata, **true, **(more if self.says_more else {})}

    def remarks(self) -> list[str]:
        if not self.made.errors:
            return []
        path, worst = max(self.made.errors.items(), key=lambda pair: pair[1])
        kind, rank = self.network.settings.name, self.rule.rank
        line = (
            f"a LoRA of rank {rank} in place of the {kind}: it differs from it by {self.made.error:.1%}, "
            f"at most by {worst:.1%} ({path}); a higher --export_rank brings it nearer"
        )
        return [line]


FORMS: dict[str, tuple[type[AdapterForm], ...]] = {
    "comfy": (ComfyForm,),
    "universal": (UniversalForm,),
    "both": (ComfyForm, UniversalForm),
}
"""--export_format -> what is written; the second has a name of its own."""


def trained_norms(network: AdapterNetwork) -> int:
    """Norms with a difference that a file may hold."""
    return sum(p.is_norm and (p.loaded or not p.frozen) for p in network.placements)


def trained_of_text_encoder(network: AdapterNetwork) -> int:
    """Its modules that a file may hold."""
    return sum(placement.is_of_text_encoder for placement in network.exported())


def is_cut(adapter: AdditiveAdapter, asked: int | None) -> bool:
    """Whether a LoRA is brought to a smaller rank, --export_rank."""
    return adapter.cut_at_export and 0 < (asked or 0) < (adapter.rank or 0)
