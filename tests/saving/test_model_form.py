"""A trained model's file: spelled as any base's, whatever lies in it, and compared bit by bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_runtime.model_facts import ModelFiles
from library.anima_runtime.model_layout import layout_of
from library.anima_runtime.model_loading import load_transformer
from library.errors import OutputError
from library.saving.exporting import Exporter
from library.saving.model_form import ModelForm
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.flags.save import SaveOptions
from library.training.optimization import saved_weights
from library.training.optimizers import create_optimizer, optimizer_train_mode
from networks._anima_arguments import component_of
from networks.whole_model import Whole, WholeModel
from tests.helpers.tiny import golden
from tests.helpers.whole import spelling

KEY = "blocks.0.mlp.layer1.weight"


def whole(path: Path, adapter: Path | None = None) -> WholeModel:
    """The model of a file, attached, computing in bf16 with float32 masters."""
    files = ModelFiles(str(path), "", "", str(adapter) if adapter else None)
    model = load_transformer(path, dtype=torch.float32, llm_adapter_path=adapter)
    subject = Whole(component_of, {"mod": 0.0}, torch.bfloat16, lambda: layout_of(files))
    made = subject.made_for(model)
    made.attach(model, torch.float32)
    return made


def form(model: WholeModel, **options) -> ModelForm:
    made = ModelForm(SaveOptions(output_dir="out", **options), model)
    made.prepare()
    return made


def in_two_files(folder: Path) -> tuple[Path, Path]:
    """The tiny DiT as others store it: under a prefix, with what no network needs, its adapter apart."""
    tensors = load_file(golden("anima_tiny_dit.safetensors"))
    start = next(key.removesuffix(KEY) for key in tensors if key.endswith(KEY))
    plain = {key.removeprefix(start): tensor for key, tensor in tensors.items()}
    dit = {f"net.{k}": t.bfloat16() for k, t in plain.items() if not k.startswith("llm_adapter.")}
    dit |= {"net.pos_embedder.seq": torch.arange(5.0), "net.accum_steps": torch.tensor([3])}
    own = {k.removeprefix("llm_adapter."): t for k, t in plain.items() if k.startswith("llm_adapter.")}
    save_file(dit, folder / "dit.safetensors")
    save_file(own, folder / "llm_adapter.safetensors")
    return folder / "dit.safetensors", folder / "llm_adapter.safetensors"


def test_two_files_become_one_that_has_all_of_both(tmp_path):
    dit, adapter = in_two_files(tmp_path)
    written = tmp_path / "model.safetensors"
    made = form(whole(dit, adapter))
    made.write(written, {"modelspec.architecture": "anima"})
    assert not made.wrong_with(written)
    found, parts = spelling(written), spelling(adapter)
    assert found == spelling(dit) | {f"net.llm_adapter.{key}": parts[key] for key in parts}
    before, after = load_file(dit), load_file(written)
    assert all(torch.equal(before[key], after[key]) for key in before)  # nothing was trained yet


def test_a_file_that_was_spoilt_is_told(tmp_path):
    model = whole(golden("anima_tiny_dit.safetensors"))
    exporter = Exporter(SaveOptions(output_dir=str(tmp_path)), model)
    made = exporter.forms[0]
    written = tmp_path / "model.safetensors"
    made.prepare()
    made.write(written, {})
    content = bytearray(written.read_bytes())
    content[-3] ^= 1
    written.write_bytes(content)
    (told,) = made.wrong_with(written)
    assert told.endswith("has other numbers")
    written.write_bytes(content[:-8])
    assert made.wrong_with(written)


def test_what_a_precision_cannot_hold_is_float32(tmp_path):
    model = whole(golden("anima_tiny_dit.safetensors"))
    large = next(part for part in model.parts if part.name == KEY)
    large.held.data[0, 0] = 1e6
    form(model, save_precision="fp16").write(tmp_path / "m.safetensors", {})
    dtypes = {key: dtype for key, (dtype, _) in spelling(tmp_path / "m.safetensors").items()}
    assert {key for key, dtype in dtypes.items() if dtype == "F32"} == {
        key for key in dtypes if key.endswith(KEY)
    }


def test_a_model_with_nan_is_not_written():
    model = whole(golden("anima_tiny_dit.safetensors"))
    model.parts[0].held.data.view(-1)[0] = torch.nan
    with pytest.raises(OutputError, match=model.parts[0].name):
        form(model)


def test_parts_have_groups_and_frozen_ones_neither_gradient_nor_master():
    model = whole(golden("anima_tiny_dit.safetensors"))
    frozen = [n for n, p in model.model.named_parameters() if not p.requires_grad]
    assert frozen and all("adaln_modulation" in name for name in frozen)
    groups, names = model.prepare_optimizer_params(None, None, 1e-5)
    assert names == ["unet"] and len(groups[0]["params"]) == len(model.parts)
    for part in model.parts:
        part.weight.grad = torch.full_like(part.weight, 0.5)
    model.gather_gradients()
    assert all(part.weight.grad is None for part in model.parts)
    assert {part.held.grad.dtype for part in model.parts} == {torch.float32}


def test_what_a_schedule_free_optimizer_saves_is_in_the_model_meanwhile():
    model = whole(golden("anima_tiny_dit.safetensors"))
    options = OptimizerOptions(optimizer_type="AdamWScheduleFree", learning_rate=1e-2)
    optimizer = create_optimizer(options, [{"params": model.get_trainable_params()}])
    optimizer_train_mode(optimizer)
    for _ in range(2):
        for part in model.parts:
            part.held.grad = torch.ones_like(part.held)
        optimizer.step()
    model.show()
    part = model.parts[0]
    training = part.weight.detach().clone()
    with saved_weights(optimizer, model):
        assert torch.equal(part.weight, part.held.bfloat16())
        assert not torch.equal(part.weight, training)
    assert torch.equal(part.weight, training)
