"""The adapter files of a save: in the forms that were asked for, each compared with the adapters.

ComfyUI's form holds what was trained. The universal one is for programs that read less; see
networks/workshop/universal.py.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.device_utils import precision_dtype
from library.errors import OutputError, Problem, UserError
from library.saving.checkpoints import EXTENSION, universal_file, write_or_rescue
from library.system.files import free_name
from library.system.tensor_files import TensorFileError, read_header
from library.utils import log_lines
from networks import readers
from networks.codec import read_adapter, write_adapter
from networks.kinds.linear import AdditiveAdapter, LinearAdapter
from networks.network import NormExport
from networks.precision import in_precision
from networks.workshop.low_rank import RankRule
from networks.workshop.universal import Universal, delta_of_adapter, universal
from networks.workshop.verifying import Written, differences

if TYPE_CHECKING:
    from library.settings.run_config import SaveOptions
    from networks.file_contents import FamilyFiles
    from networks.network import AdapterNetwork

logger = logging.getLogger(__name__)

DEFAULT_RANK = 64
"""Of a LoRA in place of something else."""
NAMED = 5
"""Of what is wrong with a file, at the most."""


class Form(ABC):
    """One spelling of the adapters in a file."""

    def __init__(self, options: SaveOptions, network: AdapterNetwork) -> None:
        self.network = network
        self.dtype = precision_dtype(options.save_precision or "float")

    @abstractmethod
    def written(self) -> Written:
        """What a file of it should hold."""

    @abstractmethod
    def write(self, file: Path, metadata: Mapping[str, str]) -> None:
        """The adapters as they were when `prepare` was called, whole or not at all."""

    def prepare(self) -> None:
        """Make what a file holds of the adapters as they are now."""

    def metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Of the run, as they are true of this form."""
        return dict(metadata)

    def remarks(self) -> list[str]:
        """What is said of the file at each save."""
        return []

    def left_out(self) -> str:
        """What was trained and is not in it; "" for nothing."""
        norms = trained_norms(self.network) if not self.has_norms() else 0
        return f"the {norms} norms that were trained are not in it" if norms else ""

    def has_norms(self) -> bool:
        return False


class ComfyForm(Form):
    def has_norms(self) -> bool:
        return self.network.settings.norm_export is not NormExport.OMIT_TRAINED

    def write(self, file: Path, metadata: Mapping[str, str]) -> None:
        self.network.save_weights(file, self.dtype, metadata)

    def written(self) -> Written:
        return Written(self.dtype)


class UniversalForm(Form):
    def __init__(self, options: SaveOptions, network: AdapterNetwork) -> None:
        super().__init__(options, network)
        self.says_more, self.asked = not options.no_metadata, options.export_rank
        self.rule = RankRule(rank=options.export_rank or DEFAULT_RANK)
        self.made = Universal({})

    def prepare(self) -> None:
        adapters = {
            placement.path: placement.adapter
            for placement in self.network.exported()
            if isinstance(placement.adapter, AdditiveAdapter)
        }
        deltas = {path: delta_of_adapter(adapter) for path, adapter in adapters.items()}
        cut = {path for path, adapter in adapters.items() if is_cut(adapter, self.asked)}
        self.made = universal(deltas, self.rule, cut)

    def write(self, file: Path, metadata: Mapping[str, str]) -> None:
        write_adapter(file, in_precision(self.made.tensors, self.dtype), metadata)

    def written(self) -> Written:
        return Written(self.dtype, has_norms=False, errors=self.made.errors)

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
        kind, rank = self.network.settings.kind, self.rule.rank
        line = (
            f"a LoRA of rank {rank} in place of the {kind}: it differs from it by {self.made.error:.1%}, "
            f"at most by {worst:.1%} ({path}); a higher --export_rank brings it nearer"
        )
        return [line]


FORMS: dict[str, tuple[type[Form], ...]] = {
    "comfy": (ComfyForm,),
    "universal": (UniversalForm,),
    "both": (ComfyForm, UniversalForm),
}
"""--export_format -> what is written; the second has a name of its own."""


class Exporter:
    """Writes the files of each save.

    family: what programs know its files by; with it the first file of each form says who reads it
    """

    def __init__(self, options: SaveOptions, network: AdapterNetwork) -> None:
        self.options, self.network = options, network
        self.family: FamilyFiles | None = None
        self.forms = [form(options, network) for form in FORMS[options.export_format]]
        self.told: set[type[Form]] = set()

    def write(self, file: Path, metadata: Mapping[str, str]) -> Path:
        """The adapters as they are now; returns the first file, which may have got another name."""
        first, *others = self.forms
        file = self.write_form(first, file, metadata)
        for form in others:
            self.write_form(form, universal_file(file), metadata)
        return file

    def write_form(self, form: Form, file: Path, metadata: Mapping[str, str]) -> Path:
        form.prepare()
        entries = form.metadata(metadata)

        def write(path: Path) -> None:
            form.write(path, entries)

        file = write_or_rescue(write, file)
        logger.info("saved %s", file)
        log_lines(logger, [f"{file.name}: {line}" for line in form.remarks()])
        log_lines(logger, self.said_once(form, file))
        if self.options.verify_export:
            file = self.verified(form, file, write)
        return file

    def said_once(self, form: Form, file: Path) -> list[str]:
        """What holds for all files of a form: what they lack, and what each program makes of them."""
        if type(form) in self.told:
            return []
        self.told.add(type(form))
        lines = [f"{file.name}: {left_out}"] if (left_out := form.left_out()) else []
        if self.family:
            try:
                header = read_header(file)
            except TensorFileError:  # told where the file is compared
                return lines
            found = readers.verdicts(header.entries, header.metadata, self.family)
            lines += [f"{file.name} in {line}" for line in readers.lines(found)]
        return lines

    def verified(self, form: Form, file: Path, write: Callable[[Path], None]) -> Path:
        """`file`, if it holds what the adapters hold; else a second one beside it, if that one does."""
        found = self.wrong_with(form, file)
        if not found:
            return file
        second = free_name(file, EXTENSION)
        try:
            write(second)
        except OutputError as error:
            again, outcome = found, f"It could not be written once more: {error}"
        else:
            again = self.wrong_with(form, second)
            outcome = f"Written once more as {second}, which " + (
                "does not either: keep a state (--save_state), and please report this."
                if again
                else "does: use that one. Both are kept."
            )
        logger.error(
            "%s does not hold what was trained: %s. %s Training goes on.",
            file, "; ".join(shortened(found)), outcome,
        )  # fmt: skip
        return file if again else second

    def wrong_with(self, form: Form, file: Path) -> list[str]:
        try:
            tensors = read_adapter(file, self.network.settings.kinds)
        except UserError as error:
            return [problem.message.rstrip(".") for problem in error.problems]
        return differences(self.network, tensors, form.written())


def shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - NAMED
    return [*lines[:NAMED], *([f"and {more} more"] if more > 0 else [])]


def export_problems(options: SaveOptions, network: AdapterNetwork) -> list[Problem]:
    """What was asked for and could not be in the files. network: perhaps without memory."""
    if options.export_format == "comfy":
        return []
    where = f"export_format = {options.export_format}"
    kept = network.exported()
    if not any(isinstance(placement.adapter, LinearAdapter) for placement in kept):
        message = "is for LoRAs of Linears, and none is trained. Use comfy."
        return [Problem(message, where)]
    linears = [p.adapter for p in kept if isinstance(p.adapter, LinearAdapter)]
    if homeless := sorted({each.not_universal for each in linears} - {""}):
        message = f"has no place for {' and '.join(homeless)}. Use comfy."
        return [Problem(message, where)]
    norms = sum(placement.is_norm for placement in kept)
    if norms and options.export_format == "universal":
        message = (
            f"has no place for the {norms} norms that are trained. Train none with --no-train_norm; or set "
            "export_format = both, of which the comfy file has them; or, to lose them knowingly, "
            "norm_export = omit_trained."
        )
        return [Problem(message, where)]
    return []


def export_notes(options: SaveOptions, network: AdapterNetwork) -> list[str]:
    """What is trained and files leave out, and what a LoRA stands in place of; for the start of a run."""
    notes, kind = [], network.settings.kind
    trained = trained_norms(network)
    if trained and network.settings.norm_export is NormExport.OMIT_TRAINED:
        notes.append(f"no file will hold the {trained} norms: norm_export = omit_trained.")
    elif trained and options.export_format == "both":
        notes.append(f"the universal files will not hold the {trained} norms; the others do.")
    if options.export_format != "comfy":
        if is_approximated(network, options.export_rank):
            rank = options.export_rank or DEFAULT_RANK
            notes.append(
                f"the universal files will hold a LoRA of rank {rank} (--export_rank) in place of the "
                f"{kind}; each save says how far it is from it."
            )
        elif options.export_rank:
            notes.append(f"--export_rank has no effect: a {kind} is written at its own rank.")
    return notes


def trained_norms(network: AdapterNetwork) -> int:
    """Norms with a difference that a file may hold."""
    return sum(p.is_norm and (p.loaded or not p.frozen) for p in network.placements)


def is_approximated(network: AdapterNetwork, asked: int | None) -> bool:
    """Whether the universal form is another delta than the trained one. asked: --export_rank"""
    adapters = [placement.adapter for placement in network.exported()]
    additive = [each for each in adapters if isinstance(each, AdditiveAdapter)]
    return any(len(each.chains()) > 1 or is_cut(each, asked) for each in additive)


def is_cut(adapter: AdditiveAdapter, asked: int | None) -> bool:
    """Whether a LoRA is brought to a smaller rank, --export_rank."""
    return adapter.cut_at_export and 0 < (asked or 0) < (adapter.rank or 0)


def bytes_of_save(options: SaveOptions, network: AdapterNetwork) -> int:
    """Of the files of one save without metadata; without averages of the weights."""
    size = precision_dtype(options.save_precision or "float").itemsize
    kept, rank = network.exported(), options.export_rank or DEFAULT_RANK
    full = [factor.numel() for p in kept for factor in p.adapter.stored().values()]
    count = 0
    for form in FORMS[options.export_format]:
        if form is ComfyForm:
            count += sum(full)
            continue
        for placement in kept:
            adapter = placement.adapter
            if isinstance(adapter, AdditiveAdapter):
                sides = sum(placement.base.get_parameter("weight").shape)
                own = min(placement.base.get_parameter("weight").shape)
                exact = len(adapter.chains()) == 1 and not is_cut(adapter, options.export_rank)
                lora = adapter.rank if exact else min(rank, own)
                count += sides * (lora or own)
    return count * size

