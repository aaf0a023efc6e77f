"""Adapter files from strangers: they load, or are refused in words; nothing else can happen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from library.errors import AdapterFileError, UserError
from networks import lokr_anima, lora_anima
from networks.codec import read_adapter
from networks.merging import merge_file
from tests.helpers.hostile_adapters import files
from tests.helpers.hostile_files import examples, file_bytes, layout_of
from tests.helpers.tiny import tiny_transformer

MODULES = {"LoRA": lora_anima, "LoKr": lokr_anima}


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


@pytest.fixture(scope="module")
def networks(model):
    return {
        kind: module.create_network(1.0, 2, 1, None, None, model)
        for kind, module in MODULES.items()
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "a.safetensors"


@examples(200)
@given(files, st.sampled_from(sorted(MODULES)))
def test_an_adapter_loads_or_is_refused_in_words(path, networks, model, content, kind):
    path.write_bytes(content)
    try:
        networks[kind].load_weights(path)
    except UserError:
        pass
    try:
        network, _ = MODULES[kind].create_network_from_weights(
            1.0, str(path), None, None, model, train_norm=False
        )
    except UserError:
        return
    assert network.summary()
    for tensor in network.export_tensors(torch.float32).values():
        assert torch.isfinite(tensor).all()


@examples(200)
@given(files)
def test_an_adapter_merges_or_is_refused_in_words(path, model, content):
    path.write_bytes(content)
    try:
        merge_file(model, str(path), 0.0)
    except UserError:
        pass
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name


def write(path, *tensors):
    header, size = layout_of(tensors)
    path.write_bytes(file_bytes(header, b"\0" * size))


LAYER = "diffusion_model.blocks.0.mlp.layer1"


@pytest.mark.parametrize("load", ["own rank", "merged"])
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([(f"{LAYER}.lora_down.weight", "F32", ()), (f"{LAYER}.lora_up.weight", "F32", ())],
         "expected a matrix"),
        ([(f"{LAYER}.lora_down.weight", "F32", (0,)), (f"{LAYER}.lora_up.weight", "F32", (0,))],
         "expected a matrix"),
        ([(f"{LAYER}.lora_down.weight", "F32", (2**30, 0)), (f"{LAYER}.lora_up.weight", "F32", (0, 2**30))],
         "shapes without numbers"),
        ([(f"{LAYER}.lora_down.weight", "F32", (40_000, 1)), (f"{LAYER}.lora_up.weight", "F32", (1, 40_000))],
         "expected"),
        ([(f"{LAYER}.lokr_w1", "F32", (4, 4)), (f"{LAYER}.lokr_w2_a", "F32", (96, 2)),
          (f"{LAYER}.lokr_w2_b", "F32", (3, 24))], "of rank 2 and lokr_w2_b of rank 3"),
        ([(f"{LAYER}.lora_down.weight", "F32", (2, 96)), (f"{LAYER}.lora_up.weight", "F32", (384, 2)),
          (f"{LAYER}.alpha", "F32", (2,))], "alpha holds 2 numbers"),
        ([(f"{LAYER}.lora_down.weight", "BOOL", (2, 96))], "kind not read here"),
    ],
)  # fmt: skip
def test_impossible_sizes_are_named(path, model, tensors, words, load):
    write(path, *tensors)
    with pytest.raises(AdapterFileError, match=words):
        if load == "merged":
            merge_file(model, str(path), 1.0)
        else:
            lokr = any("lokr" in name for name, _, _ in tensors)
            module = lokr_anima if lokr else lora_anima
            module.create_network_from_weights(1.0, str(path), None, None, model)


def test_no_file_makes_the_screen_act(path):
    write(path, ("a\x1b[2J\r\n\x9b.alpha", "F32", ()))
    tensors = read_adapter(path)
    with pytest.raises(AdapterFileError) as caught:
        lora_anima.create_network_from_weights(
            1.0, None, None, None, tiny_transformer(), weights_sd=tensors
        )
    assert not {"\x1b", "\x9b", "\r"} & set(str(caught.value))
    assert "a\\x1b[2J\\r\\n\\x9b.alpha" in str(caught.value)
