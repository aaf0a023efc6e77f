"""The weight files of a save: in the forms that were asked for, each compared with what was trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.device_utils import precision_dtype
from library.errors import OutputError, Problem
from library.saving.adapter_forms import (
    DEFAULT_RANK,
    FORMS,
    ComfyForm,
    is_cut,
    trained_norms,
    trained_of_text_encoder,
)
from library.saving.checkpoints import EXTENSION, universal_file, write_or_rescue
from library.saving.form import Form
from library.saving.model_form import ModelForm
from library.system.files import free_name
from library.system.tensor_files import TensorFileError, read_header
from library.utils import log_lines
from networks import readers
from networks.kinds.linear import AdditiveAdapter, LinearAdapter
from networks.network import AdapterNetwork
from networks.network_settings import NormExport
from networks.whole_model import WholeModel

if TYPE_CHECKING:
    from library.settings.flags.save import SaveOptions
    from networks.file_contents import FamilyFiles
    from networks.trained import Trained

logger = logging.getLogger(__name__)

NAMED = 5
"""Of what is wrong with a file, at the most."""


class Exporter:
    """Writes the files of each save.

    family: what programs know its files by; with it the first file of each form says who reads it
    """

    def __init__(self, options: SaveOptions, network: Trained) -> None:
        self.options, self.network = options, network
        self.family: FamilyFiles | None = None
        self.forms = forms_of(options, network)
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
        found = form.wrong_with(file)
        if not found:
            return file
        second = free_name(file, EXTENSION)
        try:
            write(second)
        except OutputError as error:
            again, outcome = found, f"It could not be written once more: {error}"
        else:
            again = form.wrong_with(second)
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


def forms_of(options: SaveOptions, network: Trained) -> list[Form]:
    """In which each save is written."""
    if isinstance(network, WholeModel):
        return [ModelForm(options, network)]
    assert isinstance(network, AdapterNetwork), "there is nothing else"
    return [form(options, network) for form in FORMS[options.export_format]]


def shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - NAMED
    return [*lines[:NAMED], *([f"and {more} more"] if more > 0 else [])]


def export_problems(options: SaveOptions, network: Trained) -> list[Problem]:
    """What was asked for and could not be in the files. network: perhaps without memory."""
    if options.export_format == "comfy" or not isinstance(network, AdapterNetwork):
        return []
    where = f"export_format = {options.export_format}"
    kept = network.exported()
    if not any(isinstance(placement.adapter, LinearAdapter) for placement in kept):
        message = "is for LoRAs of Linears, and none is trained. Use comfy."
        return [Problem(message, where)]
    linears = [p.adapter for p in kept if isinstance(p.adapter, LinearAdapter)]
    if homeless := sorted({each.not_universal for each in linears} - {""}):
        message = (
            f"has no place for {' and '.join(homeless)}. Use comfy; tools/convert_lora_format.py makes a "
            "LoRA of such a file."
        )
        return [Problem(message, where)]
    if options.export_format == "both":  # the comfy file has all of it
        return []
    return [Problem(message, where) for message in left_out_of_universal(network)]


def left_out_of_universal(network: AdapterNetwork) -> Iterator[str]:
    """What trains and has no place in a universal file, with what to do."""
    if text := trained_of_text_encoder(network):
        yield (
            f"has no place for the {text} modules of the text encoder that are trained: not all programs "
            "read them. Set export_format = both, of which the comfy file has them, or "
            "network_train_unet_only."
        )
    if norms := sum(placement.is_norm for placement in network.exported()):
        yield (
            f"has no place for the {norms} norms that are trained. Train none with --no-train_norm; or set "
            "export_format = both, of which the comfy file has them; or, to lose them knowingly, "
            "norm_export = omit_trained."
        )


def export_notes(options: SaveOptions, network: Trained) -> list[str]:
    """What is trained and files leave out, and what a LoRA stands in place of; for the start of a run."""
    if not isinstance(network, AdapterNetwork):
        return []
    notes, kind = [], network.settings.name
    trained = trained_norms(network)
    if trained and network.settings.norm_export is NormExport.OMIT_TRAINED:
        notes.append(f"no file will hold the {trained} norms: norm_export = omit_trained.")
    elif trained and options.export_format == "both":
        notes.append(f"the universal files will not hold the {trained} norms; the others do.")
    if (text := trained_of_text_encoder(network)) and options.export_format == "both":
        notes.append(
            f"the universal files will not hold the {text} modules of the text encoder; the others do."
        )
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


def is_approximated(network: AdapterNetwork, asked: int | None) -> bool:
    """Whether the universal form is another delta than the trained one. asked: --export_rank"""
    adapters = [placement.adapter for placement in network.exported()]
    additive = [each for each in adapters if isinstance(each, AdditiveAdapter)]
    return any(len(each.chains()) > 1 or is_cut(each, asked) for each in additive)


def bytes_of_save(options: SaveOptions, network: Trained) -> int:
    """Of the files of one save without metadata; without averages of the weights."""
    size = precision_dtype(options.save_precision or "float").itemsize
    if isinstance(network, WholeModel):
        asked = options.save_precision and precision_dtype(options.save_precision).itemsize
        sizes = network.layout.dtypes
        return sum(t.numel() * (asked or sizes[name].itemsize) for name, t in network.whole().items())
    assert isinstance(network, AdapterNetwork), "there is nothing else"
    kept, rank = network.exported(), options.export_rank or DEFAULT_RANK
    full = [factor.numel() for p in kept for factor in p.adapter.stored().values()]
    count = 0
    for form in FORMS[options.export_format]:
        if form is ComfyForm:
            count += sum(full)
            continue
        for placement in kept:
            adapter = placement.adapter
            if isinstance(adapter, AdditiveAdapter) and not placement.is_of_text_encoder:
                sides = sum(placement.base.get_parameter("weight").shape)
                own = min(placement.base.get_parameter("weight").shape)
                exact = len(adapter.chains()) == 1 and not is_cut(adapter, options.export_rank)
                lora = adapter.rank if exact else min(rank, own)
                count += sides * (lora or own)
    return count * size

