"""Files of a save: the universal form against dense deltas, and files that are not what was trained."""

import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.saving.adapter_forms import ComfyForm
from library.saving.exporting import Exporter, bytes_of_save, export_problems
from library.settings.flags.save import SaveOptions
from tests.helpers.running import config_files, make_trainer, report
from tests.helpers.tiny import rel_l2, tiny_transformer
from tests.helpers.trained_networks import MODULES, OPTIONS, trained
from tests.helpers.written_adapters import live_differences

PREFIX, DOWN, UP = "diffusion_model.", ".lora_A.weight", ".lora_B.weight"
LAYER = f"{PREFIX}blocks.0.mlp.layer1"


@pytest.fixture(scope="module")
def networks():
    return {name: trained(name, alpha=1) for name in OPTIONS}


def exporter(network, **options):
    return Exporter(SaveOptions(output_dir="out", **options), network)


def written(network, folder, **options):
    """The tensors and the metadata of a file."""
    file = exporter(network, **options).write(folder / "a.safetensors", {"ss_network_dim": "3"})
    with safe_open(file, "pt") as opened:
        return load_file(file), opened.metadata()


def products(file):
    """path -> B @ A of a file that holds nothing else, in float64."""
    paths = {key.removesuffix(DOWN) for key in file if key.endswith(DOWN)}
    assert set(file) == {path + ending for path in paths for ending in (DOWN, UP)}
    return {
        path.removeprefix(PREFIX): file[path + UP].double() @ file[path + DOWN].double()
        for path in paths
    }


def deltas(network):
    """path -> what the live adapters add to the Linears."""
    found = live_differences(network)
    linears = {p.path for p in network.placements if not p.is_norm}
    return {key.removesuffix(".weight"): d for key, d in found.items() if key.removesuffix(".weight") in linears}


def test_a_lora_is_written_without_alpha_and_norms_and_stays_exact(networks, tmp_path):
    file, metadata = written(networks["lora"], tmp_path, export_format="universal")
    theirs, mine = products(file), deltas(networks["lora"])
    assert theirs.keys() == mine.keys() and len(mine) == 40
    for path, delta in mine.items():
        assert rel_l2(theirs[path], delta) < 1e-6
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3.0")
    assert metadata["ss_export_format"] == "universal" and "ss_export_error" not in metadata
    again, _ = MODULES["lora"].create_network_from_weights(
        1.0, str(tmp_path / "a.safetensors"), None, None, tiny_transformer(), for_inference=True
    )
    for placement in again.placements:  # as --network_weights reads it
        assert rel_l2(placement.adapter.delta(), mine[placement.path]) < 1e-6


@pytest.mark.parametrize("name", ["lokr low", "lokr full", "lokr both"])
def test_a_lokr_becomes_the_best_lora_of_the_rank(networks, tmp_path, caplog, name):
    caplog.set_level(logging.INFO)
    file, metadata = written(networks[name], tmp_path, export_format="universal", export_rank=8)
    theirs, lost, whole = products(file), 0.0, 0.0
    for path, delta in deltas(networks[name]).items():
        assert len(file[f"{PREFIX}{path}{DOWN}"]) <= 8
        rest = torch.linalg.svdvals(delta.double())[8:].square().sum()
        assert abs((theirs[path] - delta).square().sum() - rest) < 1e-5 * delta.square().sum()
        lost, whole = lost + rest, whole + delta.square().sum()
    error = float((lost / whole).sqrt())
    assert float(metadata["ss_export_error"]) == pytest.approx(error, abs=1e-4)
    assert metadata["ss_network_module"] == "networks.lora_anima"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("8", "8.0")
    assert f"a LoRA of rank 8 in place of the LoKr: it differs from it by {error:.1%}" in caplog.text


def test_comfy_is_what_it_was_and_both_adds_a_file(networks, tmp_path):
    network = networks["lora"]
    network.save_weights(tmp_path / "plain.safetensors", None, {"ss_network_dim": "3"})
    written(network, tmp_path, export_format="both")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"plain.safetensors", "a.safetensors", "a-universal.safetensors"}
    plain, comfy = (tmp_path / f"{name}.safetensors" for name in ("plain", "a"))
    assert plain.read_bytes() == comfy.read_bytes()
    products(load_file(tmp_path / "a-universal.safetensors"))


@pytest.mark.parametrize("name", ["lora", "lokr low", "lokr full"])
@pytest.mark.parametrize("dtype", [None, "fp16", "bf16"])
def test_what_is_right_is_found_right(networks, tmp_path, caplog, name, dtype):
    for number, form in enumerate(("both", "universal")):
        made = exporter(networks[name], export_format=form, save_precision=dtype)
        made.write(tmp_path / f"{number}.safetensors", {})
    assert "does not hold" not in caplog.text and len(list(tmp_path.iterdir())) == 3


def scaled(key, factor):
    def spoil(file):
        file[key] = file[key] * factor

    return spoil


def swapped(one, other):
    def spoil(file):
        file[one], file[other] = file[other], file[one]

    return spoil


def lost(key):
    return lambda file: file.pop(key)


def rounded(dtype):
    def spoil(file):
        file |= {key: tensor.to(dtype).float() for key, tensor in file.items() if "lo" in key}

    return spoil


NORM = f"{PREFIX}blocks.0.self_attn.q_norm.w_norm"
SPOILT = {
    "alpha": ("lora", "comfy", scaled(f"{LAYER}.alpha", 1.01), "layer1 has scale 0.336667 instead of"),
    "no alpha": ("lora", "comfy", lost(f"{LAYER}.alpha"), "layer1 has lora_up that differs"),
    "a factor": ("lora", "comfy", scaled(f"{LAYER}.lora_up.weight", -1), "lora_up that differs by 2 "),
    "one number": ("lora", "comfy", lambda file: file[f"{LAYER}.lora_up.weight"][0].fill_(9), "lora_up"),
    "NaN": ("lora", "comfy", lambda file: file[f"{LAYER}.lora_up.weight"][0].fill_(torch.nan), "lora_up"),
    "layers": ("lora", "comfy", swapped(
        f"{PREFIX}blocks.0.self_attn.q_proj.lora_up.weight",
        f"{PREFIX}blocks.0.self_attn.k_proj.lora_up.weight"), "q_proj has lora_up"),
    "half lost": ("lora", "comfy", lost(f"{LAYER}.lora_up.weight"), "layer1 has lora_down instead of"),
    "norm lost": ("lora", "comfy", lost(NORM), "q_norm is not in the file"),
    "norm": ("lora", "comfy", scaled(NORM, 2), "q_norm has w_norm that differs by 1 "),
    "other key": ("lora", "comfy", lambda file: file.update({f"{PREFIX}x.lora_up.weight": torch.ones(2, 2)}), "no such module"),
    "precision": ("lora", "comfy", rounded(torch.float16), "that differs by"),
    "kronecker": ("lokr full", "comfy", swapped(
        f"{PREFIX}blocks.0.self_attn.q_proj.lokr_w2",
        f"{PREFIX}blocks.0.self_attn.k_proj.lokr_w2"), "q_proj has lokr_w2"),
    "transposed": ("lokr full", "comfy", lambda file: file.update(
        {f"{LAYER}.lokr_w1": file[f"{LAYER}.lokr_w1"].T.contiguous()}), "has lokr_w1"),
    "folded": ("lora", "universal", scaled(f"{LAYER}{UP}", 3), "lora_up that differs by 2 "),
    "approximated": ("lokr full", "universal", scaled(f"{LAYER}{UP}", 0.9), "layer1 is a LoRA with an error"),
    "approximation": ("lokr full", "universal", swapped(
        f"{PREFIX}blocks.0.self_attn.q_proj{UP}", f"{PREFIX}blocks.0.self_attn.k_proj{UP}"), "q_proj is a LoRA"),
}  # fmt: skip


class Spoiling(ComfyForm):
    """Another form, whose first files are spoilt after they were written."""

    def __init__(self, form, spoil, times):
        self.form, self.spoil, self.left = form, spoil, times
        self.prepare, self.written = form.prepare, form.written
        self.network, self.remarks = form.network, form.remarks

    def write(self, file, metadata):
        self.form.write(file, metadata)
        if self.left:
            self.left -= 1
            tensors = load_file(file)
            self.spoil(tensors)
            save_file(tensors, file)


def spoiling(made, spoil, times):
    made.forms = [Spoiling(made.forms[0], spoil, times)]
    return made


@pytest.mark.parametrize("case", SPOILT)
def test_a_file_that_is_not_what_was_trained_is_found_and_written_once_more(
    networks, tmp_path, caplog, case
):
    name, form, spoil, told = SPOILT[case]
    made = spoiling(exporter(networks[name], export_format=form), spoil, 1)
    file = made.write(tmp_path / "a.safetensors", {})
    assert file.name == "a-2.safetensors" and len(list(tmp_path.iterdir())) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith(f"{tmp_path / 'a.safetensors'} does not hold what was trained: ")
    assert told in line and f"Written once more as {file}, which does: use that one." in line


def test_a_file_that_is_always_wrong_is_said_to_be(networks, tmp_path, caplog):
    made = spoiling(exporter(networks["lora"]), lambda file: file.clear(), 2)
    made.forms[0].spoil = scaled(f"{LAYER}.alpha", 2)
    assert made.write(tmp_path / "a.safetensors", {}).name == "a.safetensors"
    assert "which does not either" in caplog.text and len(list(tmp_path.iterdir())) == 2


def test_files_are_compared_unless_that_is_off(networks, tmp_path, caplog):
    made = exporter(networks["lora"], verify_export=False)
    spoiling(made, scaled(f"{LAYER}.alpha", 2), 1).write(tmp_path / "a.safetensors", {})
    assert "does not hold" not in caplog.text and len(list(tmp_path.iterdir())) == 1


LOKR = {
    "network_module": "networks.lokr_anima", "network_args": ["lokr_factor=4", "lokr_full_matrix=true"],
    "network_dim": None, "network_alpha": None,
}  # fmt: skip


def test_a_run_writes_both_forms_and_removes_both(demo, run_folder, caplog):
    caplog.set_level(logging.INFO)
    settings = {
        **LOKR, "export_format": "both", "export_rank": 4, "save_every_n_steps": 1,
        "save_last_n_steps": 0, "max_train_steps": 2, "ema_decay": 0.5, "save_precision": "bf16",
        "no_metadata": True,
    }  # fmt: skip
    argv = config_files(demo, run_folder, settings)
    text, _ = report(argv)
    assert "will hold a LoRA of rank 4 (--export_rank) in place of the LoKr" in text
    trainer = make_trainer(argv)
    trainer.train()
    names = {path.name for path in (run_folder / "out").glob("*.safetensors")}
    assert names == {
        f"{name}{ema}{form}.safetensors"
        for name in ("run-step00000002", "run")
        for ema in ("", "-ema")
        for form in ("", "-universal")
    }
    size = sum((run_folder / "out" / f"run{form}.safetensors").stat().st_size for form in ("", "-universal"))
    assert 0 < size - bytes_of_save(trainer.cfg.save, trainer.network) < 150_000  # headers
    for each in ("run", "run-ema"):
        file = load_file(run_folder / "out" / f"{each}-universal.safetensors")
        assert len(products(file)) == 40 and {t.dtype for t in file.values()} == {torch.bfloat16}
    once = "run-step00000001-universal.safetensors: the 24 norms that were trained are not in it"
    assert sum("norms that were trained are not in it" in line for line in caplog.messages) == 1
    assert once in caplog.messages and "does not hold" not in caplog.text
    step, every = "run-step00000001", "ComfyUI, Forge Neo, SD.Next, InvokeAI, diffusers, SwarmUI, "
    assert f"{step}-universal.safetensors in {every}Lora Manager and Civitai: all of it" in caplog.text
    refused = f"{step}.safetensors in diffusers: nothing of it; refuses the whole file for alpha"
    assert refused in caplog.text and caplog.text.count(" in diffusers: ") == 1
    assert f"{step}.safetensors in InvokeAI: nothing of it; refuses the whole file for diff" in caplog.text


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"export_format": "universal"}, "has no place for the 24 norms that are trained"),
        ({"export_format": "both", "network_args": ["target_modules=none"]}, "none is trained"),
    ],
)
def test_what_a_form_would_lose_is_an_error_unless_it_is_asked_for(demo, run_folder, settings, told):
    text, code = report(config_files(demo, run_folder, settings))
    assert code == 2 and told in text
    for more in ({"train_norm": False}, {"norm_export": "omit_trained"}):
        if "universal" in settings.values():
            text, code = report(config_files(demo, run_folder, {**settings, **more}))
            assert told not in text
            assert ("no file will hold the 24 norms" in text) is ("norm_export" in more)


@pytest.mark.parametrize("form", ["universal", "both"])
@pytest.mark.parametrize(
    ("name", "more", "words"),
    [("lora", {"dora_wd": True}, "the magnitudes of dora_wd"), ("loha", {}, "a LoHa"), ("oft", {}, "an OFT")],
)
def test_what_no_plain_lora_can_stand_for_is_refused(form, name, more, words):
    options = SaveOptions(output_dir="out", export_format=form)
    (problem,) = export_problems(options, trained(name, train_norm=False, **more))
    assert problem.message.startswith(f"has no place for {words}. Use comfy; tools/convert_lora_format.py")
    assert problem.where == f"export_format = {form}"
    assert not export_problems(options, trained("lora", train_norm=False))
