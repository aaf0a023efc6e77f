"""What is said of a dataset key stands once: the flag, the field and the code follow the table."""

from dataclasses import MISSING, fields

import pytest

from library.data.dataset_config import DatasetConfig, SubsetConfig
from library.data.images import KERNELS
from library.settings.dataset_keys import INTERPOLATIONS, KEYS
from library.settings.options import all_flags
from library.settings.run_config import GROUPS

FLAGS = all_flags(GROUPS.values())
FIELDS = {f.name: f for group in (DatasetConfig, SubsetConfig) for f in fields(group)}
SILENT = {None, MISSING}  # "not given": the key's default counts


@pytest.mark.parametrize("name, key", KEYS.items())
def test_flag_and_field_have_the_default_of_their_key(name, key):
    defaults = {FIELDS[name].default} if name in FIELDS else set()
    if key.flag is not None:
        defaults.add(FLAGS[name if key.flag == "=" else key.flag].default)
    assert defaults <= {key.default} | SILENT


def test_every_interpolation_has_a_kernel():
    assert tuple(KERNELS) == INTERPOLATIONS
