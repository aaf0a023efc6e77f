"""A trained model's file: spelled as the base's, written and compared a tensor at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.device_utils import precision_dtype
from library.errors import OutputError, Problem
from library.saving.form import Form
from library.system.system_errors import output_errors
from library.system.tensor_files import TensorFileError, read_header, read_tensors
from library.system.tensor_writing import DTYPES, Planned, tensor_writer
from library.utils import atomic_write, first_few
from networks.precision import loses

if TYPE_CHECKING:
    from library.settings.flags.save import SaveOptions
    from networks.whole_model import WholeModel

logger = logging.getLogger(__name__)


class ModelForm(Form):
    """The whole model, by the keys and shapes of its base's file, and in its dtypes unless told otherwise.

    dtypes: key -> what it is written in, of the weights as they were when `prepare` was called
    """

    def __init__(self, options: SaveOptions, model: WholeModel) -> None:
        self.model = model
        self.asked = options.save_precision and precision_dtype(options.save_precision)
        self.dtypes: dict[str, torch.dtype] = {}

    @torch.no_grad()
    def prepare(self) -> None:
        """Find what each tensor can be written in. Raises OutputError naming those that are not finite."""
        layout, lost, bad = self.model.layout, [], []
        for name, tensor in self.model.whole().items():
            dtype = self.asked or layout.dtypes[name]
            if not bool(torch.isfinite(tensor).all()):
                bad.append(Problem("holds NaN or infinity; nothing was written.", name))
            elif dtype.itemsize < tensor.dtype.itemsize and loses(tensor, tensor.to(dtype)):
                lost.append(name)
                dtype = torch.float32
            self.dtypes[layout.keys[name]] = dtype
        if bad:
            raise OutputError(bad, source="the trained model")
        if lost:
            told = first_few(lost, 3)
            logger.warning("the file's precision would lose %s: written in float32", told)

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """As the file has it, on the CPU."""
        return tensor.detach().to(self.dtypes[self.model.layout.keys[name]]).cpu().contiguous()

    def plan(self) -> dict[str, Planned]:
        layout = self.model.layout
        own = {
            layout.keys[name]: Planned(DTYPES[self.dtypes[layout.keys[name]]], tuple(tensor.shape))
            for name, tensor in self.model.whole().items()
        }
        return own | {key: planned for key, (planned, _) in layout.beside.items()}

    def write(self, file: Path, metadata: Mapping[str, str]) -> None:
        layout, plan = self.model.layout, self.plan()
        entries = {str(name): str(value) for name, value in metadata.items()}
        with (
            output_errors(file),
            atomic_write(file) as temporary,
            tensor_writer(temporary, plan, entries, hashed=False) as writer,
        ):
            for name, tensor in self.model.whole().items():
                writer.put(layout.keys[name], self.tensor(name, tensor))
            for key, (_, data) in layout.beside.items():
                writer.put_bytes(key, data)

    def wrong_with(self, file: Path) -> list[str]:
        """Every tensor is compared bit by bit."""
        try:
            header = read_header(file)
            found = {key: Planned(e.dtype, e.shape) for key, e in header.entries.items()}
            if found != (plan := self.plan()):
                odd = sorted(key for key in found.keys() | plan.keys() if found.get(key) != plan.get(key))
                return [f"{first_few(odd, 3)} are not as they were to be written"]
            wrong = []
            for name, tensor in self.model.whole().items():
                key = self.model.layout.keys[name]
                read = read_tensors(file, header, [key])[key]
                if not same_bits(read, self.tensor(name, tensor)):
                    wrong.append(f"{key} has other numbers")
            return wrong
        except TensorFileError as error:
            return [str(error)]


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
