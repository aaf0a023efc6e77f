"""ModelLayout: how the file of a base model spells it, so that a trained one can be written alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from library.system.tensor_writing import Planned


@dataclass(frozen=True)
class ModelLayout:
    """keys:   a tensor's name in the model -> its key in the file
    dtypes: a tensor's name -> its dtype in the file
    beside: key -> what the file holds that the model does not use, with its bytes
    """

    keys: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    beside: Mapping[str, tuple[Planned, bytes]] = field(default_factory=dict)
