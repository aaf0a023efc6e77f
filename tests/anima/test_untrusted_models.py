"""Base model files from strangers: they load, or are refused in words; nothing else can happen."""

import json
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from library.anima_models import (
    load_anima_qwen_model,
    load_anima_transformer,
    load_anima_vae,
)
from library.anima_runtime import model_loading
from library.errors import ModelFileError, UserError
from library.system.tensor_files import read_header
from tests.helpers.hostile_files import ODD_VALUES, examples, file_bytes, layout_of, spoiled
from tests.helpers.processes import run_code
from tests.helpers.tiny import golden

FILES = {
    "dit": "anima_tiny_dit.safetensors",
    "vae": "qwen_image_vae_tiny.safetensors",
    "qwen": "qwen3_tiny.safetensors",
}
INSPECT = {
    "dit": model_loading.inspect_transformer,
    "vae": model_loading.inspect_vae,
    "qwen": model_loading.inspect_qwen,
}
LOAD = {
    "dit": load_anima_transformer,
    "vae": load_anima_vae,
    "qwen": load_anima_qwen_model,
}
SHAPES = {
    kind: {name: entry.shape for name, entry in read_header(golden(file)).entries.items()}
    for kind, file in FILES.items()
}
EDGES = [0, 1, 2, 3, 16, 96]
LARGEST = 2**42  # bytes: more than any model, less than a file may have


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("models") / "a.safetensors"


def write(path, shapes, dtype="F32"):
    """A model of zeros with these shapes; sparse on the disk, and cut short where no disk has room."""
    header, size = layout_of([(name, dtype, shape) for name, shape in shapes.items()])
    path.write_bytes(file_bytes(header, b""))
    with open(path, "rb+") as file:
        file.truncate(min(path.stat().st_size + size, LARGEST))
    return path


@st.composite
def models(draw):
    """(kind, shapes) of a model with a few tensors lost, renamed, added or of other sizes."""
    kind = draw(st.sampled_from(sorted(SHAPES)))
    shapes = dict(SHAPES[kind])
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(shapes)))
        what = draw(st.sampled_from(["drop", "rename", "edge", "rank", "copy"]))
        shape = list(shapes[name])
        if what == "edge" and shape:
            shape[draw(st.integers(0, len(shape) - 1))] = draw(st.sampled_from([*EDGES, 10**6]))
        elif what == "rank":
            shape = draw(st.lists(st.sampled_from(EDGES), max_size=5))
        if what in ("drop", "rename"):
            del shapes[name]
        if what in ("rename", "copy"):
            number = draw(st.sampled_from(["7", "99999999999", "-1", "x", "", "9" * 5000]))
            name = ".".join(number if part.isdigit() else part for part in name.split("."))
        if what != "drop":
            shapes[name] = tuple(shape)
    return kind, shapes


@examples(150)
@given(models(), st.sampled_from(["F32", "F32", "BF16", "F8_E4M3", "I32"]))
def test_a_model_loads_or_is_refused_in_words(path, model, dtype):
    kind, shapes = model
    write(path, shapes, dtype)
    try:
        INSPECT[kind](path)
        loaded = LOAD[kind](path)
    except UserError:
        return
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())


@examples(150)
@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_a_spoiled_file_is_refused_in_words(path, kind, data):
    some = dict(sorted(SHAPES[kind].items())[:3])
    content = data.draw(spoiled([(name, "F32", shape) for name, shape in some.items()]))
    path.write_bytes(content)
    for inspect in INSPECT.values():
        with pytest.raises(UserError):
            inspect(path)


@pytest.mark.parametrize("number", ["99999999999", "100000", "9" * 5000])
@pytest.mark.parametrize(("kind", "name"), [
    ("dit", "net.blocks.{}.mlp.layer1.weight"),
    ("dit", "net.llm_adapter.blocks.{}.mlp.0.weight"),
    ("qwen", "model.layers.{}.mlp.up_proj.weight"),
])  # fmt: skip
def test_a_block_of_any_number_costs_no_time(path, kind, name, number):
    shapes = {**SHAPES[kind], name.format(number): (1, 1)}
    write(path, shapes)
    with pytest.raises(ModelFileError, match="block|layer"):
        INSPECT[kind](path)
        LOAD[kind](path)


def qwen_folder(folder, config=None, **files):
    """The tiny Qwen as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(golden(FILES["qwen"]).read_bytes())
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text, encoding="utf-8")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture(scope="module")
def config():
    """The settings that belong to the tiny Qwen."""
    return load_anima_qwen_model(golden(FILES["qwen"])).config.to_dict()


ODD_SETTINGS = ODD_VALUES | st.sampled_from(
    [
        10**12,
        -(10**400),
        1e-300,
        "yarn",
        "eager",
        {"rope_type": "yarn"},
        {"rope_theta": "x"},
        [[[]]],
    ]
)


@examples(150)
@given(st.data())
def test_a_config_is_used_or_refused_in_words(tmp_path_factory, config, data):
    names = [*config, "rope_theta", "rope_scaling", "quantization_config", "attn_implementation",
             "auto_map", "torch_dtype", "_attn_implementation"]  # fmt: skip
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(names)), ODD_SETTINGS, max_size=3))
    folder = qwen_folder(tmp_path_factory.getbasetemp() / "configs", {**config, **changed})
    try:
        load_anima_qwen_model(folder)
    except UserError:
        pass


@examples(60)
@given(
    st.text(max_size=30) | st.sampled_from(["[" * 10**5, "{" * 10**5, "1" * 5000, '{"a":' * 9999])
)
def test_a_config_of_any_text_is_refused_in_words(tmp_path_factory, text):
    folder = qwen_folder(tmp_path_factory.getbasetemp() / "texts")
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError):
        load_anima_qwen_model(folder)


@pytest.mark.parametrize("name", ["num_hidden_layers", "vocab_size", "hidden_size", "head_dim"])
def test_a_config_of_other_sizes_than_the_tensors_costs_no_time(tmp_path, config, name):
    folder = qwen_folder(tmp_path, {**config, name: 10**9})
    with pytest.raises(ModelFileError, match=f"{name} 1000000000"):
        load_anima_qwen_model(folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"attn_implementation": "someone/kernels"},
        {"_attn_implementation": "someone/kernels"},
        {"auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]},
        {"dtype": "float64", "torch_dtype": "float64"},
        {"use_kernels": True, "is_decoder": False, "pruned_heads": {"0": [0]}},
    ],
)
def test_a_config_has_no_say_beyond_the_network_itself(tmp_path, config, setting):
    plain = load_anima_qwen_model(golden(FILES["qwen"]), dtype=torch.float32)
    loaded = load_anima_qwen_model(
        qwen_folder(tmp_path, {**config, **setting}), dtype=torch.float32
    )
    assert type(loaded) is type(plain)
    assert loaded.config._attn_implementation == plain.config._attn_implementation
    for (name, mine), theirs in zip(loaded.named_parameters(), plain.parameters()):
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype, name


def test_an_index_leads_nowhere_outside_the_folder(tmp_path):
    folder = qwen_folder(tmp_path / "qwen")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = SHAPES["qwen"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match="holds no .safetensors file"):
        load_anima_qwen_model(folder)
    write(folder / "model.safetensors", {"model.norm.weight": (96,)})
    with pytest.raises(ModelFileError):
        load_anima_qwen_model(folder)


def test_two_files_of_a_folder_may_not_hold_the_same_tensor(tmp_path):
    folder = qwen_folder(tmp_path)
    write(folder / "more.safetensors", {"model.norm.weight": SHAPES["qwen"]["model.norm.weight"]})
    with pytest.raises(ModelFileError, match=r"model.norm.weight.*more than one file"):
        load_anima_qwen_model(folder)


TOO_MUCH = """
import resource, sys
from library.anima_runtime import model_loading
from library.errors import UserError
def of_process(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
read = sys.argv[3] == "read"
model_loading.load_transformer(sys.argv[1], disable_mmap=read)  # all that loading imports
limit = of_process("VmData") + 2**30
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before = of_process("VmHWM")
try:
    model_loading.load_transformer(sys.argv[2], disable_mmap=read)
except UserError:
    print(of_process("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["map", "read"])
def test_a_model_that_does_not_fit_is_not_read(path, how):
    small = path.with_name("small.safetensors")
    write(small, SHAPES["dit"])
    shapes = {**SHAPES["dit"], "net.blocks.0.mlp.layer1.weight": (2**16, 2**15)}
    write(path, shapes)
    run = run_code(TOO_MUCH, small, path, how)
    assert run.returncode == 0 and int(run.stdout) < 2**27, run.stderr
    path.unlink()


SIZES_APART = {
    "heads that do not divide": ({"blocks.0.self_attn.q_norm.weight": (7,)}, "heads of 7"),
    "an odd head": ({"blocks.0.self_attn.q_norm.weight": (3,)}, "heads of 3 in a width of 96"),
    "no head": ({"llm_adapter.blocks.0.self_attn.q_norm.weight": (0,)}, "head_dim 0"),
    "text of another width": ({"blocks.0.cross_attn.k_proj.weight": (96, 80)}, "blocks read text 80 wide"),
    "other latents": ({"x_embedder.proj.1.weight": (96, 72)}, "latents of 17 channels"),
}


@pytest.mark.parametrize("name", SIZES_APART)
def test_sizes_that_no_network_has_are_told(path, name):
    shapes, words = SIZES_APART[name]
    write(path, {**SHAPES["dit"], **{f"net.{key}": shape for key, shape in shapes.items()}})
    with pytest.raises(ModelFileError, match=words):
        load_anima_transformer(path)
