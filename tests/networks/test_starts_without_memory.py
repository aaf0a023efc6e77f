"""A file to start from is compared with a model without memory, before anything is loaded."""

import pytest

from library.device_utils import without_memory
from library.errors import AdapterFileError
from tests.helpers.tiny import tiny_transformer
from tests.helpers.trained_networks import MODULES, OPTIONS, TURNED, trained

KINDS = OPTIONS | TURNED
STARTS = [
    *((name, {}) for name in KINDS),
    ("lora", {"dora_wd": "true"}),
    ("loha", {"dora_wd": "true", "wd_on_out": "false"}),
]


@pytest.mark.parametrize("name, more", STARTS, ids=str)
def test_every_kinds_own_file_fits(tmp_path, name, more):
    file, (kind, options) = tmp_path / "a.safetensors", KINDS[name]
    trained(name, **more).save_weights(file, None, None)
    options = {"network_dim": 3, **options, **more}
    with without_memory():
        model, rank = tiny_transformer().to("meta"), options.pop("network_dim")
        asked = MODULES[kind].create_network(1.0, rank, 1, None, None, model, **options)
        asked.load_weights(file)
        found, _ = MODULES[kind].create_network_from_weights(1.0, str(file), None, None, model)
        assert len(found.placements) == len(asked.placements) == 64
        other = MODULES[kind].create_network(
            1.0, rank, 1, None, None, model, **options, exclude_patterns=".*mlp.*"
        )
        with pytest.raises(AdapterFileError, match="mlp"):
            other.load_weights(file)
