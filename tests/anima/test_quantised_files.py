"""ComfyUI's checkpoints of 8 bits: written here by its rules, read by the project's loader."""

import json
import logging
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_models import load_anima_qwen_model, load_anima_transformer, load_anima_vae
from library.anima_runtime import model_loading
from library.errors import ModelFileError
from library.memory.modes import store_weights
from library.memory.quantised import QuantisedLinear
from library.settings.flags.precision import PrecisionOptions
from tests.helpers.coded_files import (
    DIT,
    FORMS,
    FP8,
    ROTATED,
    as_bytes,
    in_blocks,
    marked,
    written,
)
from tests.helpers.running import exported, model_paths, train
from tests.helpers.tiny import golden, golden_vectors, rel_l2

QWEN = golden("qwen3_tiny.safetensors")
CPU = torch.device("cpu")
OWN = {
    "fp8_base": ("scaled_fp8", "fp8", "fp8 rows", "fp8 cast"),
    "int8_base": ("int8", "int8 rows"),
}


def velocity(dit):
    v = golden_vectors()
    with torch.no_grad():
        return dit(v["in.x.sq"][:, :, 0], v["in.t.sq"], v["in.qwen_hidden.a"], v["in.t5_ids.a"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("read", [False, True])
def test_a_file_of_8_bits_loads_as_the_weights_it_stands_for(tmp_path, form, read):
    old = {"net.scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    file, dense = written(tmp_path, FORMS[form], **(old if form == "scaled_fp8" else {}))
    found = model_loading.load_transformer(file, dtype=torch.float32, disable_mmap=read)
    expected = load_anima_transformer(dense, dtype=torch.float32)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=0, atol=1e-6)
    apart = rel_l2(velocity(found)[:, :, None], golden_vectors()["out.dit.sq"])
    assert 1e-4 < apart < (0.03 if "int8" in form else 0.2)


def test_the_formats_may_stand_in_the_metadata(tmp_path):
    write = marked(torch.float8_e4m3fn, None)
    whole = {key.removesuffix(".weight"): FP8 for key in load_file(DIT) if in_blocks(key)}
    expected = None
    for layers in (whole, {name.removeprefix("net."): "float8_e4m3fn" for name in whole}):
        metadata = {
            "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})
        }
        file, dense = written(tmp_path, write, metadata=metadata)
        expected = load_anima_transformer(dense, dtype=torch.float32)
        assert (
            rel_l2(velocity(load_anima_transformer(file, dtype=torch.float32)), velocity(expected))
            < 1e-6
        )


@pytest.mark.parametrize("option", OWN)
@pytest.mark.parametrize("form", FORMS)
def test_codes_of_the_runs_own_form_are_kept_to_the_bit(tmp_path, form, option, caplog):
    precision = PrecisionOptions(mixed_precision="bf16", **{option: True})
    file, _ = written(tmp_path, FORMS[form])
    caplog.set_level(logging.INFO)
    model = model_loading.load_transformer(file, stored=precision)
    kept = {n: m for n, m in model.named_modules() if isinstance(m, QuantisedLinear)}
    forms = model.forms_to_store(precision.stored_form, llm_adapter=True)
    linears = {name for _, named in forms for name in named}
    in_file = load_file(file)
    coded = {n for n in linears if in_file[f"net.{n}.weight"].element_size() == 1}
    assert set(kept) == (coded if form in OWN[option] else set()) and coded
    store_weights(precision, model, CPU)
    assert linears == {n for n, m in model.named_modules() if isinstance(m, QuantisedLinear)}
    for name, module in kept.items():
        codes = in_file[f"net.{name}.weight"].view(torch.uint8)
        assert torch.equal(model.get_submodule(name).weight.view(torch.uint8), codes)
        assert module.weight_scale.shape == (len(codes), 1)
    message = caplog.messages[-1]
    assert f"{len(kept)} are used as they are" in message
    assert (f"rounded a second time, to {precision.stored_form}" in message) is (not kept)
    whole = load_anima_transformer(file, dtype=torch.float32)
    assert rel_l2(velocity(model).float(), velocity(whole)) < (0.05 if kept else 0.2)


def test_weights_that_stayed_whole_may_have_a_scale_of_1(tmp_path):
    def write(layer, weight):
        return {f"{layer}.weight": weight, f"{layer}.scale_weight": torch.full((1,), scale)}, weight

    scale = 1.0
    file, dense = written(tmp_path, write)
    assert torch.equal(
        velocity(load_anima_transformer(file)), velocity(load_anima_transformer(dense))
    )
    scale = 0.5
    with pytest.raises(ModelFileError, match="it has a scale and is not in 8 bits"):
        load_anima_transformer(written(tmp_path, write)[0])


def bad(**changes):
    def write(layer, weight):
        entries, dense = marked(torch.int8, ROTATED, True, True)(layer, weight)
        for name, value in changes.items():
            entries.pop(f"{layer}.{name}", None)
            entries |= {} if value is None else {f"{layer}.{name}": value}
        return entries, dense

    return write


@pytest.mark.parametrize(
    "write, complaint",
    [
        (bad(comfy_quant=as_bytes({"format": "nvfp4"})), "its format is nvfp4"),
        (bad(comfy_quant=as_bytes(FP8)), "its format is float8_e4m3fn, but it holds I8"),
        (
            bad(comfy_quant=as_bytes({**ROTATED, "convrot_groupsize": 32})),
            "rotated in groups of 32",
        ),
        (
            bad(comfy_quant=as_bytes({**ROTATED, "convrot_groupsize": 256})),
            "groups of 256 of its 96",
        ),
        (bad(comfy_quant=as_bytes([1])), "a mark without a format"),
        (bad(comfy_quant=torch.zeros(4, dtype=torch.uint8)), "is a quantised checkpoint in a form"),
        (bad(comfy_quant=torch.zeros(4)), "expected JSON as bytes"),
        (bad(comfy_quant=None), "I8, and nothing says what it stands for"),
        (bad(weight_scale=None), "it has 0 scales"),
        (bad(weight_scale=torch.ones(3, 8)), r"a scale F32 \(3, 8\) for \(96, 96\)"),
        (bad(weight=torch.zeros(2, 2, dtype=torch.int16)), "but it holds I16"),
    ],
)
def test_what_is_not_known_is_refused_with_the_reason(tmp_path, write, complaint):
    file, _ = written(tmp_path, write, chosen=lambda key: "blocks.0.self_attn.q_proj" in key)
    with pytest.raises(ModelFileError, match=complaint) as told:
        load_anima_transformer(file)
    assert "the bf16 file of Anima's DiT" in str(told.value) and str(file) in str(told.value)


def test_the_text_encoder_is_read_in_8_bits_too_and_the_vae_is_not(tmp_path):
    chosen = lambda key: key.endswith("_proj.weight")
    file, dense = written(tmp_path, FORMS["fp8"], source=QWEN, chosen=chosen)
    ids = golden_vectors()["in.qwen_ids.a"]
    with torch.no_grad():
        found, expected = (
            load_anima_qwen_model(path, dtype=torch.float32)(ids).last_hidden_state
            for path in (file, dense)
        )
    assert rel_l2(found, expected) < 1e-6
    vae = {key: value.to(torch.float8_e4m3fn) for key, value in
           load_file(golden("qwen_image_vae_tiny.safetensors")).items()}  # fmt: skip
    save_file(vae, tmp_path / "vae.safetensors")
    with pytest.raises(ModelFileError, match="is a quantised checkpoint. Use the full file"):
        load_anima_vae(tmp_path / "vae.safetensors")


@pytest.fixture(scope="module")
def stored_demo(demo, tmp_path_factory):
    """The demo's DiT in ComfyUI's fp8."""
    source = demo / "models" / "anima_dit.safetensors"
    folder = tmp_path_factory.mktemp("stored")
    return written(folder, FORMS["fp8"], source=source)[0]


def test_a_run_trains_on_the_codes_of_its_file_and_the_doctor_names_them(
    demo, run_folder, stored_demo, caplog
):
    from tools.doctor import report

    t5 = model_paths(demo)["t5_tokenizer_dir"]
    settings = {
        "anima_transformer": str(stored_demo), "t5_tokenizer_dir": t5, "mixed_precision": "bf16",
        "fp8_base": True, "max_train_steps": 1,
    }  # fmt: skip
    caplog.set_level(logging.INFO)
    trainer = train(demo, run_folder, settings)
    model = trainer.accelerator.unwrap_model(trainer.model)
    name = "blocks.0.self_attn.output_proj.weight"
    codes = next(v for k, v in load_file(stored_demo).items() if k.endswith(name))
    assert torch.equal(model.get_parameter(name).view(torch.uint8), codes.view(torch.uint8))
    assert "weights in float8_e4m3fn" in caplog.text and "are used as they are" in caplog.text
    argv = ["--config_file", str(run_folder / "train_args.toml")]
    text, code = report([*argv, "--dataset_config", str(run_folder / "dataset.toml")])
    assert code == 0 and "8 bits: " in text and "weights in float8_e4m3fn" in text


def test_a_run_on_scaled_fp8_and_rotated_int8_learns_what_it_learns_on_their_values(
    demo, run_folder
):
    """A file with both, and one in float32 of what they stand for."""

    def write(layer, weight):
        return FORMS["int8 rotated" if "mlp" in layer else "scaled_fp8"](layer, weight.float())

    source = demo / "models" / "anima_dit.safetensors"
    learned = []
    for file in written(run_folder, write, source=source):
        settings = {
            "anima_transformer": str(file), "max_train_steps": 2, "output_name": file.stem,
            "t5_tokenizer_dir": model_paths(demo)["t5_tokenizer_dir"], "cache_latents_to_disk": True,
        }  # fmt: skip
        train(demo, run_folder, settings)
        learned.append(exported(run_folder, file.stem))
    assert learned[0].keys() == learned[1].keys()
    ups = [key for key in learned[0] if key.endswith("lora_up.weight")]
    assert ups and all(learned[0][key].abs().max() > 0 for key in ups)
    for key, value in learned[0].items():
        torch.testing.assert_close(value, learned[1][key], rtol=1e-4, atol=1e-6)


def test_base_weights_are_merged_into_the_weights_that_codes_stand_for(
    demo, run_folder, stored_demo
):
    adapter = run_folder / "adapter.safetensors"
    path = "diffusion_model.blocks.0.self_attn.output_proj"
    t5 = model_paths(demo)["t5_tokenizer_dir"]
    whole = load_anima_transformer(stored_demo, dtype=torch.float32)
    width = whole.blocks[0].self_attn.output_proj.in_features
    down, up = torch.randn(2, width), torch.randn(width, 2)
    save_file({f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}, adapter)
    settings = {
        "anima_transformer": str(stored_demo), "t5_tokenizer_dir": t5, "base_weights": [str(adapter)],
        "max_train_steps": 1,
    }  # fmt: skip
    trainer = train(demo, run_folder, settings)
    found = trainer.accelerator.unwrap_model(trainer.model).blocks[0].self_attn.output_proj.weight
    expected = whole.blocks[0].self_attn.output_proj.weight + up @ down
    assert rel_l2(found, expected) < 1e-6 and math.isfinite(found.sum().item())
