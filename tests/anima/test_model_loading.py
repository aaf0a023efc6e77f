"""Which files load, how, and what is said of those that do not."""

import inspect
import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import DiTParams
from library.anima_models import load_anima_qwen_model, load_anima_transformer, load_anima_vae
from library.anima_runtime import key_mapping, model_loading, model_tensors
from library.anima_runtime.key_mapping import PREFIXES
from library.device_utils import without_memory
from library.errors import ModelFileError
from tests.helpers.processes import python, run_code
from tests.helpers.tiny import golden, golden_vectors, rel_l2, saved, tiny_transformer, tiny_vae

DIT_FILE = golden("anima_tiny_dit.safetensors")
QWEN_FILE = golden("qwen3_tiny.safetensors")


def bare_dit() -> dict[str, torch.Tensor]:
    return {key[len("net.") :]: value for key, value in load_file(DIT_FILE).items()}


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
    extra["blocks.0.self_attn._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    extra["accum_iteration"] = torch.zeros(1, dtype=torch.int64)
    extra["logvar.0.freqs"] = torch.zeros(1)
    load_anima_transformer(saved({**bare_dit(), **extra}, tmp_path))


def test_the_other_parts_of_an_all_in_one_checkpoint_are_left_alone(tmp_path):
    prefix = "model.diffusion_model."
    tensors = {prefix + key: value for key, value in bare_dit().items()}
    tensors["text_encoders.qwen.weight"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    tensors["vae.conv1.weight"] = torch.zeros(1)
    load_anima_transformer(saved(tensors, tmp_path))


def test_a_tensor_beside_the_prefix_is_unexpected_not_dropped(tmp_path):
    tensors = {"net." + key: value for key, value in bare_dit().items()}
    path = saved({**tensors, "surprise.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(ModelFileError, match=r"1 unexpected.*surprise.weight \(not under net\.\)"):
        load_anima_transformer(path)


@pytest.mark.parametrize("shape", [(), (5,), (5, 4, 3)])
def test_a_size_deciding_tensor_of_another_rank_is_told(tmp_path, shape):
    path = saved({**bare_dit(), "x_embedder.proj.1.weight": torch.zeros(shape)}, tmp_path)
    with pytest.raises(ModelFileError, match="shapes that no Anima DiT has"):
        load_anima_transformer(path)


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


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: load_file(golden("adapter_lora.safetensors")), "a LoRA or LoKr"),
        (lambda: load_file(golden("adapter_lokr_low.safetensors")), "a LoRA or LoKr"),
        (lambda: load_file(golden("qwen_image_vae_tiny.safetensors")), "a VAE"),
        (lambda: load_file(QWEN_FILE), "a Qwen3 text encoder"),
        (lambda: {"first_stage_model.decoder.mid.block_1.x": torch.zeros(1)}, "a Stable Diffusion"),
        (lambda: {"model.diffusion_model.input_blocks.0.x": torch.zeros(1)}, "Diffusion UNet"),
        (lambda: {"down_blocks.0.resnets.0.x": torch.zeros(1)}, "Diffusion UNet"),
        (lambda: {"decoder.mid.block_1.conv1.weight": torch.zeros(1)}, "a VAE"),
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
    whole = DIT_FILE.read_bytes()
    for length in (0, 5000, len(whole) - 1):  # nothing, half the header, all but the last byte
        truncated.write_bytes(whole[:length])
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


def test_a_file_read_into_memory_holds_the_same_and_is_let_go(tmp_path):
    bare = bare_dit()
    odd = {**bare, "t_embedding_norm.weight": bare["t_embedding_norm.weight"].half()}
    path = saved(odd, tmp_path)
    mapped = model_tensors.load_floats(path, disable_mmap=False)
    read = model_tensors.load_floats(path, disable_mmap=True)
    assert list(read) == list(mapped)
    assert all(read[k].dtype == v.dtype and torch.equal(read[k], v) for k, v in mapped.items())
    del mapped  # Windows locks a mapped file
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(read[key], value) for key, value in odd.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reading_into_memory_holds_one_copy_of_the_file(tmp_path, dtype):
    size = 256 * 2**20  # bytes, far above what else comes and goes
    path = saved(
        {str(i): torch.zeros(size // 64, dtype=torch.bfloat16) for i in range(32)}, tmp_path
    )
    code = f"""
import torch
from library.anima_runtime import model_tensors
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
with torch.device("meta"):
    network = torch.nn.ParameterList(torch.empty({size} // 64) for i in range(32))
before = peak()
tensors = model_tensors.load_floats({str(path)!r}, disable_mmap=True)
model_tensors.give_tensors(network, tensors, "cpu", torch.{dtype})
print(peak() - before)
"""
    run = run_code(code)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 1.3 * size


@pytest.mark.parametrize("mmap", [True, False])
def test_models_are_frozen_in_the_dtype_asked_for(mmap):
    dit = model_loading.load_transformer(DIT_FILE, dtype=torch.bfloat16, disable_mmap=not mmap)
    assert {p.dtype for p in dit.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in dit.parameters()) and not dit.training
    qwen = load_anima_qwen_model(QWEN_FILE)
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


def true_layout(kind):
    """Every tensor of an official file; `{28}` in a name stands for 0 to 27."""
    shapes = {}
    for name, shape in json.loads(golden("layouts.json").read_text())[kind].items():
        head, *repeated = re.split(r"\{(\d+)\}", name)
        numbers = range(int(repeated[0])) if repeated else [""]
        shapes |= {f"{head}{i}{''.join(repeated[1:])}": tuple(shape) for i in numbers}
    return shapes


def test_true_sizes_of_the_dit_are_inferred_from_the_official_layout():
    shapes = true_layout("dit")
    params = DiTParams.from_state_shapes(shapes)
    assert (params.model_dim, params.num_blocks, params.head_dim) == (2048, 28, 128)
    assert (params.text_dim, params.adaln_dim, params.mlp_dim) == (1024, 256, 8192)
    assert (params.llm_adapter.num_blocks, params.llm_adapter.vocab) == (6, 32128)
    with torch.device("meta"):
        dit = Anima(params)
    assert model_tensors.shapes_of(dit) == shapes and len(shapes) == 685
    assert sum(p.numel() for p in dit.parameters()) == 2_091_068_928


def test_true_sizes_of_qwen_are_inferred_from_the_official_layout():
    from transformers import Qwen3Model

    shapes = true_layout("qwen")
    named = key_mapping.qwen_entries(shapes)
    config = model_loading.qwen_config(QWEN_FILE, named)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    assert heads == (16, 8, 128) and config.num_hidden_layers == 28
    assert "1000000" in str(config.to_dict()).replace("_", "") and config.rms_norm_eps == 1e-6
    with torch.device("meta"):
        qwen = Qwen3Model(config)
    assert model_tensors.shapes_of(qwen) == named and len(shapes) == 310
    assert sum(p.numel() for p in qwen.parameters()) == 596_049_920


def test_true_sizes_of_the_vae_are_inferred_from_the_official_layout():
    from diffusers import AutoencoderKLQwenImage
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    shapes = true_layout("vae")
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = convert_wan_vae_to_diffusers(tensors)
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage(base_dim=converted["decoder.norm_out.gamma"].shape[0])
    wanted = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    assert model_tensors.shapes_of(vae) == wanted and len(shapes) == 194
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531


def test_importing_the_loaders_imports_no_model_library():
    code = (
        "import sys, library.anima_models;"
        "assert not {'transformers', 'diffusers', 'accelerate'} & set(sys.modules), 'heavy'"
    )
    run = python("-c", code)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "function, signature",
    [
        (
            load_anima_transformer,
            "(path, *, device, dtype, llm_adapter_path, attention_backend)",
        ),
        (load_anima_vae, "(path, *, device, dtype)"),
        (load_anima_qwen_model, "(path, *, device, dtype)"),
        (Anima.preprocess_text_embeds, "(self, qwen_hidden, t5_ids, *, qwen_mask, t5_mask, t5_weights)"),
        (
            Anima.forward,
            "(self, latents, sigma, qwen_hidden, t5_ids, *, qwen_mask, t5_mask, t5_weights, context, whole)",
        ),
    ],
)
def test_others_can_rely_on_these_signatures(function, signature):
    parameters = inspect.signature(function).parameters.values()
    plain = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    assert str(inspect.Signature(plain)) == signature


def test_a_model_without_memory_is_the_real_one_but_for_its_values():
    """And what is made afterwards has values again."""
    params, _ = model_loading.inspect_transformer(DIT_FILE)
    state = torch.get_rng_state()
    with without_memory():
        empty = Anima(params)
    assert torch.equal(torch.get_rng_state(), state)
    real = Anima(params)
    assert {t.device.type for t in empty.state_dict().values()} == {"meta"}
    assert model_tensors.shapes_of(empty) == model_tensors.shapes_of(real)
    assert model_tensors.shapes_of(real) == model_loading.shapes_of_dit(params)
    count = sum(parameter.numel() for parameter in real.parameters())
    assert model_loading.parameter_count(params) == count
    torch.manual_seed(3)
    made = torch.nn.Linear(8, 8)
    torch.manual_seed(3)
    drawn = torch.empty(8, 8)
    torch.nn.init.kaiming_uniform_(drawn, a=5**0.5)
    assert torch.equal(made.weight, drawn) and drawn.abs().max() > 0
