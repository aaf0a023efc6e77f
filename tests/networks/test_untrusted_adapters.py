"""Adapter files from strangers: they load, or are refused in words; nothing else can happen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from library.errors import AdapterFileError, UserError
from networks import lokr_anima, lora_anima
from networks.codec import read_adapter
from networks.kinds.table import KINDS
from networks.merging import merge_file
from tests.helpers.hostile_files import SIZES, examples, file_bytes, layout_of, spoiled
from tests.helpers.tiny import tiny_transformer
from tests.helpers.written_adapters import DOTTED, FLAT, prefix

MODULES = {"LoRA": lora_anima, "LoKr": lokr_anima}
PATHS = (
    "blocks.0.mlp.layer1", "blocks.1.cross_attn.k_proj", "blocks.0.self_attn.q_norm",
    "llm_adapter.out_proj", "final_layer.linear", "llm_adapter.embed", "no.such.module",
)  # fmt: skip
ENDINGS = sorted({*KINDS.endings, *KINDS.refused, "", "weight.weight", "alpha.alpha"})
GROUPS = {
    "lora": ("lora_down.weight", "lora_up.weight", "alpha"),
    "peft": ("lora_A.weight", "lora_B.weight"),
    "dora": ("lora_A.weight", "lora_B.weight", "dora_scale"),
    "lokr": ("lokr_w1", "lokr_w2", "alpha"),
    "low lokr": ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "alpha"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"),
    "norm": ("w_norm",),
    "differences": ("diff", "diff_b"),
    "whole": ("set_weight",),
}


MIXTURES = (("lora",), ("peft",), ("lokr",), ("low lokr",), ("lora", "lokr"), tuple(GROUPS))


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


WEIGHTS = {name: tuple(p.shape) for name, p in tiny_transformer().named_parameters()}


def right_shape(path, ending, rank):
    """The shape a factor of this module has in a sound file."""
    weight = WEIGHTS.get(f"{path}.weight", (6, 4))
    out, width = (weight * 2)[:2]
    name = KINDS.endings.get(ending, "")
    table = {
        "lora_down": (rank, width), "lora_up": (out, rank), "alpha": (), "dora_scale": (out, 1),
        "lokr_w1": (2, 2), "lokr_w2": (out // 2, width // 2), "lokr_w1_a": (2, rank),
        "lokr_w1_b": (rank, 2), "lokr_w2_a": (out // 2, rank), "lokr_w2_b": (rank, width // 2),
        "hada_w1_a": (out, rank), "hada_w1_b": (rank, width), "hada_w2_a": (out, rank),
        "hada_w2_b": (rank, width), "diff_b": (out,), "b_norm": (out,), "bias": (out,),
    }  # fmt: skip
    return table.get(name, weight)


@st.composite
def adapters(draw):
    """(key, dtype, shape) of an adapter that is sound, or has something odd somewhere."""
    tensors = {}
    style, odd = draw(st.sampled_from([*DOTTED, *FLAT])), draw(st.integers(0, 2)) == 0
    kinds = draw(st.sampled_from(MIXTURES))
    for path in draw(st.lists(st.sampled_from(PATHS[: 7 if odd else 5]), min_size=1, unique=True)):
        kind = "norm" if path.endswith("norm") else draw(st.sampled_from(kinds))
        endings, rank = GROUPS[kind], draw(st.integers(1, 3))
        if odd and draw(st.booleans()):
            endings = draw(st.lists(st.sampled_from(ENDINGS), max_size=5, unique=True))
        for ending in endings:
            dtype, shape = "F32", right_shape(path, ending, rank)
            if odd and draw(st.integers(0, 5)) == 0:
                shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 96]), max_size=4).map(tuple))
            if draw(st.integers(0, 9)) == 0:
                dtype = draw(st.sampled_from(sorted(SIZES)))
            tensors[prefix(style, path) + ending] = (dtype, shape)
    return [(key, dtype, shape) for key, (dtype, shape) in tensors.items()]


files = st.one_of(
    adapters().map(lambda tensors: sound_file(tensors)),
    adapters().flatmap(spoiled),
)


def sound_file(tensors):
    header, size = layout_of(tensors)
    return file_bytes(header, b"\0\x3c" * (size // 2) + b"\0" * (size % 2))


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
