"""Adapter files from strangers: sound ones of every kind and spelling, odd ones, spoiled ones."""

from hypothesis import strategies as st

from networks.kinds.table import KINDS
from tests.helpers.hostile_files import SIZES, file_bytes, layout_of, spoiled
from tests.helpers.tiny import tiny_transformer
from tests.helpers.written_adapters import DOTTED, FLAT, prefix

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


def sound_file(tensors, metadata=None):
    header, size = layout_of(tensors)
    if metadata:
        header["__metadata__"] = metadata
    return file_bytes(header, b"\0\x3c" * (size // 2) + b"\0" * (size % 2))

DEEP, LONG = "[" * 20_000, "9" * 6000
ODD_TEXTS = ("None", "", "nan", "-inf", "0", "1e999", LONG, DEEP, DEEP + "]" * 20_000, "{}", '{"a": {"a": []}}',
             "[NaN]", "\ud800", "\x1b[2J\n\x00", "data:image/png;base64,AAAA")  # fmt: skip
ENTRIES = (
    *("ss_network_args", "ss_network_dim", "ss_network_alpha", "ss_network_module", "ss_steps"),
    *("ss_tag_frequency", "ss_adapted_parts", "ss_num_blocks", "ss_datasets", "ss_session_id"),
    *("ss_unet_lr", "ss_made_from", "ss_base_model_version", "modelspec.resolution"),
    *("modelspec.architecture", "modelspec.thumbnail", "sshs_model_hash", "\x1b[31m"),
)
metadata = st.dictionaries(st.sampled_from(ENTRIES), st.sampled_from(ODD_TEXTS), max_size=6)
told_files = st.builds(sound_file, adapters(), metadata)
"""Sound or odd tensors under metadata that means nothing."""


PLACES = st.floats(0, 1, exclude_max=True)
damages = st.lists(
    st.tuples(st.just("header"), PLACES, st.sampled_from([bytes([b]) for b in b'\0 "{}[]:,0139aF\xff']))
    | st.tuples(st.just("numbers"), PLACES, st.just(b"\0\0\xc0\x7f") | st.binary(min_size=4, max_size=4))
    | st.tuples(st.just("end"), PLACES, st.just(b"")),
    min_size=1, max_size=3,
)  # fmt: skip
"""What is changed of a sound file: in its header, in its numbers (NaN is among them), or where it ends."""


def damaged(content, changes):
    found = bytearray(content)
    start = 8 + int.from_bytes(content[:8], "little")
    for kind, place, new in changes:
        if kind == "end":
            del found[int(place * len(found)) :]
            continue
        first, last = (0, start) if kind == "header" else (start, len(content) - 4)
        at = first + int(place * (last - first)) // len(new) * len(new)
        if at + len(new) <= len(found):
            found[at : at + len(new)] = new
    return bytes(found)
