"""Which files load, how, and what is said of those that do not."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import DiTParams
from library.anima_models import load_anima_qwen_model, load_anima_transformer, load_anima_vae
from library.anima_runtime import model_loading
from library.anima_runtime.key_mapping import PREFIXES
from library.errors import ModelFileError
from tests.tiny import golden, golden_vectors, rel_l2, tiny_transformer, tiny_vae

DIT_FILE = golden("anima_tiny_dit.safetensors")
LAYOUTS = Path(__file__).resolve().parents[2] / "shared" / "spec" / "layouts"


def bare_dit() -> dict[str, torch.Tensor]:
    return {key[len("net.") :]: value for key, value in load_file(DIT_FILE).items()}


def saved(tensors, folder, name="file.safetensors"):
    path = folder / name
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def velocity(dit):
    v = golden_vectors()
    with torch.no_grad():
        return dit(v["in.x.sq"][:, :, 0], v["in.t.sq"], v["in.qwen_hidden.a"], v["in.t5_ids.a"])


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_of_the_dit_is_read(tmp_path, prefix):
    path = saved({prefix + key: value for key, value in bare_dit().items()}, tmp_path)
    loaded = load_anima_transformer(path, dtype=torch.float32)
    assert rel_l2(velocity(loaded), velocity(tiny_transformer())) < 1e-5  # alignment in the file


def test_tolerated_keys_are_ignored(tmp_path):
    extra = {"pos_embedder.seq": torch.zeros(256), "accum_video_hours": torch.zeros(1)}
    extra["blocks.0.self_attn._extra_state"] = torch.zeros(1)
    load_anima_transformer(saved({**bare_dit(), **extra}, tmp_path))


def test_missing_unexpected_and_misshapen_tensors_are_named_together(tmp_path):
    tensors = bare_dit()
    del tensors["blocks.1.mlp.layer2.weight"]
    tensors["blocks.0.surprise"] = torch.zeros(1)
    tensors["blocks.0.mlp.layer2.weight"] = torch.zeros(3, 3)
    with pytest.raises(ModelFileError) as caught:
        load_anima_transformer(saved(tensors, tmp_path))
    for name in ("1 missing", "blocks.1.mlp.layer2.weight", "1 unexpected", "surprise", "(3, 3)"):
        assert name in str(caught.value)


def test_the_llm_adapter_may_come_from_a_file_of_its_own(tmp_path):
    tensors = bare_dit()
    adapter = {k: v for k, v in tensors.items() if k.startswith("llm_adapter.")}
    main = saved(
        {k: v for k, v in tensors.items() if k not in adapter}, tmp_path, "main.safetensors"
    )
    with pytest.raises(ModelFileError, match="--llm_adapter_path"):
        load_anima_transformer(main)
    for number, prefix in enumerate(("llm_adapter.", "net.llm_adapter.", "")):
        own = {prefix + key[len("llm_adapter.") :]: value for key, value in adapter.items()}
        path = saved(own, tmp_path, f"{number}.safetensors")
        loaded = load_anima_transformer(main, dtype=torch.float32, llm_adapter_path=path)
        assert (
            rel_l2(velocity(loaded), velocity(tiny_transformer())) < 1e-5
        )  # alignment in the file


def quantised(tensors):
    return {**tensors, "blocks.0.mlp.layer1.comfy_quant": torch.zeros(4, dtype=torch.uint8)}


def as_fp8(tensors):
    return {k: v.to(torch.float8_e4m3fn) for k, v in tensors.items()}


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: quantised(bare_dit()), "quantised"),
        (lambda: as_fp8(bare_dit()), "quantised"),
        (lambda: load_file(golden("adapter_lora.safetensors")), "a LoRA or LoKr"),
        (lambda: load_file(golden("adapter_lokr_low.safetensors")), "a LoRA or LoKr"),
        (lambda: load_file(golden("qwen_image_vae_tiny.safetensors")), "a VAE"),
        (lambda: load_file(golden("qwen3_tiny.safetensors")), "a Qwen3 text encoder"),
        (lambda: {"first_stage_model.encoder.x": torch.zeros(1)}, "a Stable Diffusion model"),
        (lambda: {"a": torch.zeros(1)}, "not a model known here"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, make, complaint):
    with pytest.raises(ModelFileError, match=complaint):
        load_anima_transformer(saved(make(), tmp_path))


@pytest.mark.parametrize(
    "load",
    [load_anima_transformer, load_anima_vae, load_anima_qwen_model],
    ids=lambda f: f.__name__,
)
def test_absent_and_damaged_files_are_user_errors(tmp_path, load):
    with pytest.raises(ModelFileError, match="no such file"):
        load(tmp_path / "absent.safetensors")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(DIT_FILE.read_bytes()[:5000])
    with pytest.raises(ModelFileError, match="not a whole"):
        load(truncated)
    page = tmp_path / "page.safetensors"
    page.write_text("<html>Sign in</html>")
    with pytest.raises(ModelFileError, match="not a whole"):
        load(page)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelFileError, match="folder"):
        load(tmp_path / "folder")


def test_a_dit_given_as_vae_or_text_encoder_is_named():
    with pytest.raises(ModelFileError, match="an Anima DiT"):
        load_anima_vae(DIT_FILE)
    with pytest.raises(ModelFileError, match="an Anima DiT"):
        load_anima_qwen_model(DIT_FILE)


@pytest.mark.parametrize("mmap", [True, False])
def test_models_are_frozen_in_the_dtype_asked_for(mmap):
    dit = model_loading.load_transformer(DIT_FILE, dtype=torch.bfloat16, disable_mmap=not mmap)
    assert {p.dtype for p in dit.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in dit.parameters()) and not dit.training
    qwen = load_anima_qwen_model(golden("qwen3_tiny.safetensors"))
    assert not any(p.requires_grad for p in qwen.parameters())
    assert not any(p.requires_grad for p in tiny_vae().parameters())


def test_the_vae_loads_in_the_diffusers_layout_too(tmp_path):
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    original = load_file(golden("qwen_image_vae_tiny.safetensors"))
    converted = convert_wan_vae_to_diffusers(dict(original))
    image = golden_vectors()["in.image"]
    file = saved(converted, tmp_path)
    (tmp_path / "vae").mkdir()
    saved(converted, tmp_path / "vae", "diffusion_pytorch_model.safetensors")
    with torch.no_grad():
        for path in (file, tmp_path / "vae"):
            assert rel_l2(load_anima_vae(path).encode(image), tiny_vae().encode(image)) < 1e-5


def test_pictures_of_odd_size_are_refused_by_the_vae():
    with pytest.raises(ValueError, match="multiples of 8"):
        tiny_vae().encode(torch.zeros(1, 3, 60, 68))


def test_qwen_loads_from_a_hugging_face_folder_as_from_the_single_file(tmp_path):
    file = golden("qwen3_tiny.safetensors")
    single = load_anima_qwen_model(file, dtype=torch.float32)
    folder = tmp_path / "qwen"
    single.save_pretrained(folder)
    ids = golden_vectors()["in.qwen_ids.a"]
    again = load_anima_qwen_model(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = single(ids, use_cache=False).last_hidden_state
        states = again(ids, use_cache=False).last_hidden_state
        assert rel_l2(states, expected) < 1e-5
    assert json.loads((folder / "config.json").read_text())["head_dim"] == 32


def gradients(dit):
    v = golden_vectors()
    parameter = dit.get_parameter("blocks.0.self_attn.q_proj.weight").requires_grad_(True)
    text = {"qwen_hidden": v["in.qwen_hidden.a"], "t5_ids": v["in.t5_ids.a"]}
    dit(v["in.x.sq"][:, :, 0], v["in.t.sq"], **text).pow(2).mean().backward()
    return parameter.grad


@pytest.mark.parametrize("cpu_offload", [False, True])
def test_checkpointing_gives_the_same_gradients(cpu_offload):
    plain = gradients(tiny_transformer())
    dit = tiny_transformer()
    dit.enable_gradient_checkpointing(cpu_offload=cpu_offload)
    assert torch.equal(gradients(dit), plain)


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
def test_half_precision_stays_near_float32(dtype, limit):
    result = velocity(tiny_transformer(dtype))
    assert rel_l2(result.float(), velocity(tiny_transformer())) < limit


def test_float16_keeps_its_residual_stream_in_float32():
    dit = tiny_transformer(torch.float16)
    seen = []
    dit.blocks[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    velocity(dit)
    assert seen == [torch.float32]


def test_a_text_that_is_all_padding_gives_no_nan():
    v = golden_vectors()
    hidden, ids = v["in.qwen_hidden_padded"], v["in.t5_ids_padded"]
    qwen_mask, t5_mask = v["in.qwen_mask_padded"].clone(), v["in.t5_mask_padded"].clone()
    qwen_mask[1], t5_mask[1] = 0, 0
    dit = tiny_transformer()
    parameter = dit.llm_adapter.blocks[0].self_attn.q_proj.weight.requires_grad_(True)
    context = dit.preprocess_text_embeds(hidden, ids, qwen_mask=qwen_mask, t5_mask=t5_mask)
    assert context.isfinite().all() and not context[1].any()
    context.pow(2).sum().backward()
    assert parameter.grad.isfinite().all()


def test_xformers_falls_back_to_torch_with_one_warning(caplog):
    if "xformers" in sys.modules:
        pytest.skip("xformers is installed")
    dit = tiny_transformer()
    dit.set_attention_backend("xformers")
    warnings = [r for r in caplog.records if "xformers" in r.message]
    assert len(warnings) == 1
    assert torch.equal(velocity(dit), velocity(tiny_transformer()))


@pytest.mark.skipif(not LAYOUTS.is_dir(), reason="the layouts of the true files are not here")
def test_true_sizes_are_inferred_from_the_official_layout():
    shapes = {k: tuple(v) for k, v in json.loads((LAYOUTS / "dit.json").read_text()).items()}
    params = DiTParams.from_state_shapes(shapes)
    assert (params.model_dim, params.num_blocks, params.num_heads) == (2048, 28, 16)
    assert (params.text_dim, params.adaln_dim, params.mlp_dim) == (1024, 256, 8192)
    assert (params.llm_adapter.num_blocks, params.llm_adapter.vocab) == (6, 32128)
    with torch.device("meta"):
        dit = Anima(params)
    assert model_loading.shapes_of(dit) == shapes
    assert sum(p.numel() for p in dit.parameters()) == 2_091_068_928


def test_importing_the_loaders_imports_no_model_library():
    code = (
        "import sys, library.anima_models;"
        "assert not {'transformers', 'diffusers', 'accelerate'} & set(sys.modules), 'heavy'"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


@pytest.mark.parametrize(
    "function, signature",
    [
        (
            load_anima_transformer,
            "(path, *, device, dtype, llm_adapter_path, attention_backend)",
        ),
        (load_anima_vae, "(path, *, device, dtype)"),
        (load_anima_qwen_model, "(path, *, device, dtype)"),
        (Anima.preprocess_text_embeds, "(self, qwen_hidden, t5_ids, *, qwen_mask, t5_mask)"),
        (
            Anima.forward,
            "(self, latents, sigma, qwen_hidden, t5_ids, *, qwen_mask, t5_mask, context)",
        ),
    ],
)
def test_others_can_rely_on_these_signatures(function, signature):
    parameters = inspect.signature(function).parameters.values()
    plain = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    assert str(inspect.Signature(plain)) == signature
