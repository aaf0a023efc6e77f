"""Every tool for adapter files, given files from strangers: a result, or one error in words and no file."""

import io
import shutil
from contextlib import redirect_stdout
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from library.errors import UserError
from tests.helpers.hostile_adapters import damaged, damages, files, told_files
from tests.helpers.hostile_files import examples, file_bytes, layout_of
from tests.helpers.paths import ROOT
from tests.helpers.tiny import golden

TOOLS = {path.stem for path in (ROOT / "tools").glob("*_lora*.py")}
COMMANDS = (
    "average_lora {file} {same} --force --output {out}",
    "check_lora {file} --json -",
    "check_lora {file} --base {base}",
    "compare_lora {file} {golden} --json -",
    "compare_lora {file} {golden} --base {base}",
    "convert_lora_format {file} --format universal --rank 2 --drop norms --output {out}",
    "edit_lora {file} --strength mlp=0.5 --output {out}",
    "merge_lora {file} {golden} --rank 2 --output {out}",
    "merge_lora {file} --base {base} --output {out}",
    "remap_lora {file} --blocks 40 --output {out}",
    "resize_lora {file} --rank 1 --output {out}",
)
WITH_MODELS = (
    "check_lora {golden} --base {file} --json -",
    "compare_lora {golden} {golden} --base {file} --json -",
    "convert_lora_format {dora} --base {file} --format kohya --rank 1 --output {out}",
    "extract_lora {base} {file} --rank 1 --output {out}",
    "extract_lora {file} {base} --rank 1 --output {out}",
    "merge_lora {golden} --base {file} --output {out}",
)
CASES, MODELS = (
    [line for line in lines if line.split()[0] in TOOLS] for lines in (COMMANDS, WITH_MODELS)
)
GOLDEN, BASE = golden("adapter_lokr_low.safetensors"), golden("anima_tiny_dit.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("hostile")
    module = "diffusion_model.blocks.0.cross_attn.k_proj"
    weight = load_file(BASE)["net.blocks.0.cross_attn.k_proj.weight"]
    factors = {
        "lora_up.weight": weight[:, :2],
        "lora_down.weight": weight[:2],
        "dora_scale": weight[:, :1],
    }
    tensors = {f"{module}.{name}": tensor.contiguous() for name, tensor in factors.items()}
    save_file(tensors, found / "dora.safetensors")
    return found


def run(command, folder, content):
    """Whether the tool ended well; with an error it has left nothing."""
    file, out = folder / "a.safetensors", folder / "out.safetensors"
    out.unlink(missing_ok=True)
    file.write_bytes(content)
    shutil.copy(file, folder / "same.safetensors")
    same = folder / "same.safetensors"
    words = {
        "file": file,
        "dora": folder / "dora.safetensors",
        "same": same,
        "out": out,
        "golden": GOLDEN,
        "base": BASE,
    }
    tool, *argv = (word.format(**words) for word in command.split())
    try:
        with redirect_stdout(io.StringIO()) as told:
            import_module(f"tools.{tool}").main(argv)
    except UserError as error:
        assert not out.exists()
        assert not {"\x1b", "\x00"} & set(str(error))
        return False
    assert not {"\x1b", "\x00"} & set(told.getvalue())
    return True


class LittleMemory(TorchDispatchMode):
    """Within: no tensor has more than 100 MB of its own."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, list | tuple) else [found]:
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                assert tensor.untyped_storage().nbytes() < 1e8, func
        return found


def test_no_tool_is_forgotten():
    assert TOOLS <= {line.split()[0] for line in (*COMMANDS, *WITH_MODELS)}


@pytest.mark.parametrize("command", CASES)
def test_a_strangers_file_is_read_or_refused_in_words(command, folder):
    assert run(command, folder, golden("adapter_lora.safetensors").read_bytes())

    @examples(10)
    @given(st.one_of(files, told_files))
    def try_one(content):
        run(command, folder, content)

    try_one()


@pytest.mark.parametrize("command", MODELS)
def test_a_strangers_model_is_read_or_refused_in_words(command, folder):
    content = save({name: 1.01 * tensor for name, tensor in load_file(BASE).items()})
    assert run(command, folder, content)

    @examples(6)
    @given(damages)
    def try_one(changes):
        run(command, folder, damaged(content, changes))

    try_one()


@pytest.mark.parametrize("command", CASES)
def test_small_files_of_huge_weights_ask_for_no_memory(command, folder):
    """Factors of 0.2 MB that stand for a matrix of 0.9e9 numbers."""
    layer = "diffusion_model.blocks.0.mlp.layer1.lokr_w"
    tensors = [(f"{layer}1", "F32", (30_000, 1)), (f"{layer}2", "F32", (1, 30_000))]
    header, size = layout_of(tensors)
    with LittleMemory():
        run(command, folder, file_bytes(header, b"\0\0\x80\x3f" * (size // 4)))
