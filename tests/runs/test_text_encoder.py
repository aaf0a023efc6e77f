"""Adapters of the text encoder: trained inside the DiT's own call, exported as ComfyUI reads them."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.anima_backend.modelling.text_encoder import PLACE, causal_mask, hidden_states
from library.anima_models import load_anima_qwen_model, load_anima_transformer
from library.anima_runtime.text_contexts import prompt_context
from library.anima_workshop.checked import look_at
from library.anima_workshop.coverage_checks import coverage_of
from library.errors import AdapterFileError, ConfigError
from library.memory.modes import enable_modes
from library.previews.painting import Contexts, Drawing, paint
from library.previews.prompt_file import PreviewPrompt
from library.settings.flags.loop import LoopOptions
from library.strategy_anima import AnimaTextEncodingStrategy
from library.training.flow_matching import NoisyLatents
from tests.helpers.comfy_rules import read_by_comfyui
from tests.helpers.pictures import give_pictures
from tests.helpers.running import config_files, make_trainer, model_paths, rows_of, train
from tests.helpers.tiny import golden_vectors, rel_l2, tiny_qwen
from tools.generate import generate

LINEARS = [*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]
SETTINGS = {
    "cache_text_encoder_outputs": False, "text_encoder_lr": [2e-2], "learning_rate": 1e-2,
    "network_args": ["train_llm_adapter=false", "rank_dropout=0.1"], "train_norm": False,
    "cache_latents_to_disk": True, "max_train_steps": 4, "save_every_n_steps": 2, "save_state": True,
}  # fmt: skip
STEP = "run-step00000002"


class Learned:
    """A run that trained both models, and what it left."""

    def __init__(self, demo, folder, **settings):
        self.demo, self.folder = demo, folder
        give_pictures(demo, folder, (1, 4, 7))
        self.settings = {**SETTINGS, **settings}
        if not settings:
            prompts = folder / "prompts.txt"
            prompts.write_text("a (meadow:1.3) --w 64 --h 64 --s 1 --l 1", encoding="utf-8")
            self.settings |= {"sample_prompts": str(prompts), "sample_every_n_steps": 4}
        self.trainer = train(demo, folder, self.settings, caption_dropout_rate=0.3)
        self.file = folder / "out" / "run.safetensors"
        self.models = model_paths(demo)

    def unstarted(self, **settings):
        return make_trainer(config_files(self.demo, self.folder, {**self.settings, **settings}))

    def checked(self, **settings):
        """A trainer that has looked at everything and loaded nothing."""
        trainer = self.unstarted(**settings)
        for stage in (trainer.prepare_process, trainer.open_state, trainer.check):
            stage()
        return trainer

    def model(self):
        """The base without adapters."""
        model = load_anima_transformer(self.models["anima_transformer"], dtype=torch.float32)
        model.hold_text_encoder(load_anima_qwen_model(self.models["qwen"], dtype=torch.float32))
        return model

    def by_comfyui(self, strength=1.0):
        """A DiT and a text encoder of their own with the file merged by ComfyUI's rules."""
        dit = load_anima_transformer(self.models["anima_transformer"], dtype=torch.float32)
        qwen = load_anima_qwen_model(self.models["qwen"], dtype=torch.float32)
        linears = {name: each for name, each in qwen.named_modules() if isinstance(each, torch.nn.Linear)}
        paths = {name: linear.weight.detach() for name, linear in linears.items()}
        differences, dropped = read_by_comfyui(load_file(self.file), dit.state_dict(), paths)
        assert not dropped
        for name, change in differences.items():
            owner = qwen if name.removesuffix(".weight") in paths else dit
            owner.get_parameter(name).data += strength * change.float()
        return dit, qwen


@pytest.fixture(scope="module")
def learned(demo, tmp_path_factory):
    return Learned(demo, tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def kronecker(demo, tmp_path_factory):
    """A run of two steps whose adapters are LoKr, with DoRA's magnitudes."""
    arguments = ["train_llm_adapter=false", "lokr_factor=4", "lokr_rank_dropout=0.1", "dora_wd=true"]
    return Learned(
        demo, tmp_path_factory.mktemp("kronecker"), network_module="networks.lokr_anima",
        network_args=arguments, network_dim=2, max_train_steps=2, save_every_n_steps=1,
    )  # fmt: skip


def test_every_linear_of_its_layers_learns_and_is_named_as_comfyui_names_it(learned):
    found = load_file(learned.file)
    layers = len(learned.trainer.base.get_submodule(PLACE).layers)
    wanted = {f"{PLACE}.layers.{n}.{linear}" for n in range(layers) for linear in LINEARS}
    ups = {k.removesuffix(".lora_up.weight"): v for k, v in found.items() if "lora_up" in k}
    assert {path for path in ups if path.startswith("text_encoders.")} == wanted
    assert all(up.abs().max() > 0 for up in ups.values())
    with safe_open(learned.file, "pt") as file:
        told = file.metadata()
    assert told["ss_text_encoder_lr"] == "0.02"
    assert f'"{PLACE}.layers.*.mlp.up_proj": {layers}' in told["ss_adapted_parts"]
    assert '"text_encoder_lr": "0.02"' in told["ss_network_args"]
    (rates,) = {(row["lr/text_encoder"], row["lr/unet"]) for row in rows_of(learned.trainer) if "lr/unet" in row}
    assert rates == (2e-2, 1e-2)
    assert coverage_of(look_at(learned.file)).text_encoder == len(wanted)


def test_the_base_stays_as_it_is(learned):
    held, fresh = learned.trainer.base.get_submodule(PLACE), load_anima_qwen_model(
        learned.models["qwen"], dtype=torch.float32
    )
    own = {k: v for k, v in held.state_dict().items() if ".adapter." not in k}
    assert all(torch.equal(value, own[name]) for name, value in fresh.state_dict().items())


def compare_with_comfyui(learned, strengths):
    """The velocity of a batch of captions of several lengths, one of them empty."""
    trainer, tokenize = learned.trainer, learned.trainer.tokenize_strategy
    captions = ["a meadow with white flowers, morning", "", "night"]
    torch.manual_seed(0)
    sigma = torch.tensor([0.3, 0.6, 0.9])
    noisy = NoisyLatents(torch.randn(3, 16, 8, 8), torch.zeros(3, 16, 8, 8), sigma)
    for strength in strengths:
        dit, qwen = learned.by_comfyui(strength)
        alone = AnimaTextEncodingStrategy(tokenize, qwen)
        with torch.no_grad(), trainer.as_used():
            trainer.network.set_multiplier(strength)
            outputs = [trainer.texts.get(caption) for caption in captions]
            found = trainer.call_unet(noisy, trainer.text_strategy.collate(outputs))
            trainer.network.set_multiplier(1.0)
            for number, caption in enumerate(captions):
                read = alone.encode_tokens(tokenize.tokenize(caption))
                expected = dit(
                    noisy.latents[number : number + 1], sigma[number : number + 1],
                    read["qwen_hidden"][None], read["t5_ids"][None],
                )  # fmt: skip
                assert rel_l2(found[number : number + 1], expected) < 2e-6, (caption, strength)


def test_the_run_computes_what_comfyui_computes_with_its_file(learned):
    """At half strength too, and a prompt as previews have it."""
    compare_with_comfyui(learned, (1.0, 0.5))
    trainer, tokenize = learned.trainer, learned.trainer.tokenize_strategy
    tokens = tokenize.tokenize_prompt("a (meadow:1.3)")
    dit, qwen = learned.by_comfyui()
    read = AnimaTextEncodingStrategy(tokenize, qwen).encode_prompt(tokens)
    with torch.no_grad(), trainer.as_used():
        context = trainer.prompt_context(trainer.base, trainer.text_strategy.encode_prompt(tokens))
        expected = dit.preprocess_text_embeds(
            read["qwen_hidden"][None], read["t5_ids"][None], t5_weights=read["t5_weights"][None]
        )
    assert rel_l2(context, expected) < 2e-6
    assert trainer.prompt_contexts_train() and len(trainer.previews.drawn) == 1


def test_a_resumed_and_recomputed_run_ends_in_the_same_numbers(learned):
    expected = load_file(learned.file)
    settings = {
        **learned.settings, "output_name": "again", "sample_prompts": None, "gradient_checkpointing": True,
        "resume": str(learned.folder / "out" / f"{STEP}-state"),
    }  # fmt: skip
    again = train(learned.demo, learned.folder, settings, caption_dropout_rate=0.3)
    assert again.base.recomputes_text and again.base.recomputing[0] == "block"
    found = load_file(learned.folder / "out" / "again.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def kept_and_gradients(model, network, ids, mask):
    """How many numbers wait for the backward pass, and what it gives the encoder's adapters."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        context = model.preprocess_text_embeds(ids, torch.tensor([[3], [4]]), qwen_mask=mask)
    context.square().sum().backward()
    trained = [p.adapter.factors() for p in network.trained() if p.is_of_text_encoder]
    gradients = [factor.grad.clone() for each in trained for factor in each.values()]
    network.clear_gradients()
    return sum(sizes), gradients


def test_recomputed_layers_keep_their_inputs_alone(learned):
    """And give the same gradients."""
    model = learned.model()
    network = learned.trainer.subject.made_for(model)
    network.attach(model, torch.float32)
    for each in network.get_trainable_params():
        torch.nn.init.normal_(each, std=0.1)
    network.set_training(False)
    batch = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    kept, plain = kept_and_gradients(model, network, *batch)
    enable_modes(LoopOptions(gradient_checkpointing=True), model, torch.device("cpu"))
    less, again = kept_and_gradients(model, network, *batch)
    assert less < kept / 2
    assert all(map(torch.equal, plain, again)) and plain[0].abs().max() > 0


def test_a_padded_batch_is_encoded_as_each_caption_alone():
    qwen, ids = tiny_qwen(), golden_vectors()["in.qwen_ids.a"][0]
    batch = torch.stack([ids, torch.cat([ids[:3], torch.zeros_like(ids[3:])])])
    mask = torch.ones_like(batch)
    mask[1, 3:] = 0
    assert causal_mask(mask)[1, 0].sum(1).tolist() == [1, 2, 3] + [3] * (len(ids) - 3)
    with torch.no_grad():
        together = hidden_states(qwen, batch, mask)
        assert rel_l2(together[0], qwen(ids[None]).last_hidden_state[0]) < 2e-6
        assert rel_l2(together[1, :3], qwen(ids[None, :3]).last_hidden_state[0]) < 2e-6


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"cache_text_encoder_outputs": True}, "cache_text_encoder_outputs encodes every caption once"),
        ({"text_encoder_lr": [1e-5, 1e-5]}, "expected one rate"),
        ({"network_args": ["text_encoder_lr=1e-5"]}, "write text_encoder_lr beside network_args"),
        ({"network_args": ["target_modules=mlp.layer1"]}, "no module of this component is adapted"),
        (
            {"export_format": "universal", "train_norm": True},
            "(?s)has no place for the 14 modules of the text encoder.*for the 9 norms that are trained",
        ),
    ],
)
def test_what_does_not_go_with_it_is_told_at_the_start(learned, settings, told):
    with pytest.raises(ConfigError, match=told):
        learned.checked(**settings)


def test_its_rates_are_groups_of_their_own(learned):
    arguments = [
        *learned.settings["network_args"], "loraplus_lr_ratio=2", "loraplus_text_encoder_lr_ratio=4",
        r"network_reg_lrs=text_encoders\..*\.layers\.0\..*=0.5",
    ]  # fmt: skip
    network = learned.checked(network_args=arguments).outline
    groups, names = network.prepare_optimizer_params(None, None, 1e-2)
    assert {name: group["lr"] for name, group in zip(names, groups)} == {
        "unet": 1e-2, "unet plus": 2e-2, "text_encoder": 2e-2, "text_encoder plus": 8e-2,
        "text_encoder reg_lr 0.5": 0.5, "text_encoder reg_lr 0.5 plus": 2.0,
    }  # fmt: skip


def test_it_does_not_train_where_it_is_told_not_to_or_no_rate_is_given(learned, caplog):
    for settings in ({"text_encoder_lr": None}, {"text_encoder_lr": [0.0]}, {"network_train_unet_only": True}):
        trainer = learned.checked(**settings)
        assert not any(path.startswith("text_encoders.") for path in trainer.outline.paths())
        told = [line for line in trainer.differences() if "the text encoder stays as it is" in line]
        assert len(told) == ("network_train_unet_only" not in settings)
    assert not [line for line in learned.checked().differences() if "text encoder" in line]


def test_a_run_goes_on_from_a_file_in_each_spelling_that_comfyui_reads(learned, tmp_path):
    def flat(key):
        name, dot, factor = key.removeprefix(f"{PLACE}.").partition(".lora" if ".lora" in key else ".alpha")
        return f"lora_te_{name.replace('.', '_')}{dot}{factor}" if key.startswith(PLACE) else key

    save_file({flat(k): v for k, v in load_file(learned.file).items()}, tmp_path / "flat.safetensors")
    for file, more in ((learned.file, {}), (tmp_path / "flat.safetensors", {"dim_from_weights": True})):
        model = learned.model()
        trainer = learned.unstarted(network_weights=str(file), **more)
        network = trainer.get_subject().made_for(model)
        written = network.export_tensors(torch.float32)
        assert all(torch.equal(value, written[k]) for k, value in load_file(learned.file).items())
    with pytest.raises(AdapterFileError, match="trains where text_encoder_lr is above 0"):
        learned.checked(text_encoder_lr=None, network_weights=str(learned.file))


def test_its_memory_is_counted(learned):
    trainer = learned.trainer
    memory = trainer.memory_counter().__self__
    (name, size, how), *others = memory.rows(LoopOptions())
    held = sum(t.numel() for n, t in trainer.base.named_parameters() if ".adapter." not in n)
    assert name == "DiT, LLM adapter, Qwen" and f"{held:,} parameters" in how
    assert size == pytest.approx(4 * held, rel=0.02) and "Qwen" not in [other for other, *_ in others]


def test_a_picture_is_drawn_by_the_changed_encoder(learned, tmp_path):
    latents = tmp_path / "latents.safetensors"
    generate([
        *("--config_file", str(learned.folder / "train_args.toml"), "--prompt", "a meadow", "--device", "cpu"),
        *("--width", "64", "--height", "64", "--steps", "1", "--cfg", "1", "--shift", "3", "--seed", "5"),
        *("--lora", str(learned.file), "--output", str(tmp_path), "--latents", str(latents)),
    ])  # fmt: skip
    (drawn,) = load_file(latents).values()
    dit, qwen = learned.by_comfyui()
    tokenize = learned.trainer.tokenize_strategy
    read = AnimaTextEncodingStrategy(tokenize, qwen).encode_prompt(tokenize.tokenize_prompt("a meadow"))
    prompt = PreviewPrompt(prompt="a meadow", steps=1, cfg=1.0, shift=3.0)
    expected = paint(
        dit, Drawing(prompt, 5, (1, 16, 8, 8)), Contexts(prompt_context(dit, read), None)
    )[0]
    assert rel_l2(drawn, expected) < 1e-5


def test_kernels_of_the_blocks_are_recorded_without_those_of_the_encoder(learned):
    model = learned.model()
    network = learned.trainer.subject.made_for(model)
    network.attach(model, torch.float32)
    model.record_passes(network.get_trainable_params(), object)
    of_text = [each for p in network.trained() if p.is_of_text_encoder for each in p.adapter.parameters()]
    found = {id(each) for each in model.recorded.trained}
    assert model.recorded_text is None and found.isdisjoint(map(id, of_text))
    assert len(found) + len(of_text) == len(network.get_trainable_params())


def test_lokr_of_every_linear_of_its_layers_learns_and_is_what_comfyui_computes(kronecker):
    found = load_file(kronecker.file)
    layers = len(kronecker.trainer.base.get_submodule(PLACE).layers)
    wanted = {f"{PLACE}.layers.{n}.{linear}" for n in range(layers) for linear in LINEARS}
    of_text = {key: value for key, value in found.items() if key.startswith(PLACE)}
    for path in wanted:
        last = next(of_text[f"{path}.{name}"] for name in ("lokr_w2_b", "lokr_w2") if f"{path}.{name}" in of_text)
        assert last.abs().max() > 0 and f"{path}.dora_scale" in of_text, path
    assert {key.rpartition(".")[0] for key in of_text} == wanted
    compare_with_comfyui(kronecker, (1.0,))


def test_a_resumed_run_of_lokr_ends_in_the_same_numbers(kronecker):
    state = kronecker.folder / "out" / "run-step00000001-state"
    settings = {**kronecker.settings, "output_name": "again", "resume": str(state)}
    train(kronecker.demo, kronecker.folder, settings, caption_dropout_rate=0.3)
    found = load_file(kronecker.folder / "out" / "again.safetensors")
    expected = load_file(kronecker.file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_lokr_goes_on_from_its_file_in_the_other_spelling(kronecker, tmp_path):
    def flat(key):
        name, dot, factor = key.removeprefix(f"{PLACE}.").rpartition(".")
        return f"lora_te_{name.replace('.', '_')}{dot}{factor}" if key.startswith(PLACE) else key

    expected = load_file(kronecker.file)
    save_file({flat(key): value for key, value in expected.items()}, tmp_path / "flat.safetensors")
    trainer = kronecker.unstarted(network_weights=str(tmp_path / "flat.safetensors"))
    written = trainer.get_subject().made_for(kronecker.model()).export_tensors(torch.float32)
    for key, value in expected.items():
        if key.endswith(".dora_scale"):  # a factor of the base's norm inside
            assert rel_l2(written[key], value) < 1e-7
        else:
            assert torch.equal(written[key], value), key
