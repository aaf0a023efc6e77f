"""network_reg_kinds: several kinds of adapter in one network and one file, chosen by patterns."""

import pytest
import torch
from safetensors.torch import load_file

from library.errors import AdapterFileError, ConfigError
from library.saving.exporting import Exporter, export_notes, export_problems
from library.settings.flags.save import SaveOptions
from networks import lokr_anima, lora_anima
from networks.workshop.verifying import Written, differences
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.running import config_files, make_trainer
from tests.helpers.tiny import loss_of, rel_l2, tiny_transformer
from tests.helpers.trained_networks import trained
from tests.helpers.written_adapters import live_differences

KINDS = r".*\.mlp\..*=lokr,.*cross_attn.*=OFT"
OPTIONS = {
    "network_reg_kinds": KINDS, "network_reg_dims": r".*\.mlp\..*=2", "lokr_factor": "4",
    "network_reg_lrs": r".*cross_attn.*=1e-3", "pissa": "1",
}  # fmt: skip
PLACES = {
    "blocks.0.self_attn.q_proj": "lora_down", "blocks.0.mlp.layer1": "lokr_w1",
    "blocks.1.cross_attn.k_proj": "oft_blocks", "llm_adapter.blocks.0.mlp.0": "lokr_w1",
}  # fmt: skip


def fresh(**options):
    return lora_anima.create_network(1.0, 3, 1, None, None, tiny_transformer(), **options)


@pytest.fixture(scope="module")
def network():
    return trained("lora", 2, **OPTIONS)


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("kinds") / "a.safetensors"
    network.save_weights(path, None, None)
    return path


def test_each_module_has_its_kind_rank_and_rate_and_comfyui_applies_them(network, file):
    tensors = load_file(file)
    for path, factor in PLACES.items():
        assert any(key.startswith(f"diffusion_model.{path}.{factor}") for key in tensors), path
    theirs = weight_differences(tensors, tiny_transformer().state_dict())
    mine = live_differences(network)
    assert theirs.keys() == mine.keys() and len(mine) == 40 + 24
    for name, difference in mine.items():
        assert rel_l2(theirs[name], difference) < 3e-5, name
    assert differences(network, tensors, Written(torch.float32)) == []
    groups, _ = network.prepare_optimizer_params(None, None, 1e-4)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for placement in network.placements:
        expected = 1e-3 if "cross_attn" in placement.path else 1e-4
        assert {rates[id(p)] for p in placement.adapter.factors().values()} == {expected}


def test_the_log_and_the_metadata_say_which(network):
    (line,) = [line for line in network.summary() if "trained parameters" in line]
    assert line.startswith("LoRA and LoKr and OFT: 40 Linears")
    for words in ("LoRA of rank 6: ", "LoKr of rank 2: ", "OFT of blocks of 3: "):
        assert words in line
    args = network.network_args
    assert args["network_reg_kinds"] == KINDS and args["lokr_factor"] == "4" and args["pissa"] == "true"
    assert network.dim == 6


def test_a_start_from_the_file_is_the_same_network(network, file):
    live = loss_of(network.model).item()
    again = fresh(**OPTIONS)
    again.load_weights(file)
    like, _ = lora_anima.create_network_from_weights(1.0, str(file), None, None, tiny_transformer())
    for other in (again, like):
        model = tiny_transformer()
        other.apply_to(None, model)
        assert loss_of(model).item() == pytest.approx(live, rel=1e-5)
    assert like.settings.name == "LoRA and LoKr and OFT"


def test_a_file_of_kinds_that_are_not_trained_is_refused_by_name(file):
    with pytest.raises(AdapterFileError, match="a LoRA and LoKr and OFT file, not a LoRA and LoKr"):
        fresh(network_reg_kinds=r".*mlp.*=lokr").load_weights(file)
    with pytest.raises(AdapterFileError, match="network_reg_kinds"):
        fresh().load_weights(file)


def test_the_universal_form_has_loras_as_they_are_and_the_others_by_singular_values(tmp_path):
    mixed = trained("lora", 2, network_reg_kinds=r".*mlp.*=lokr", train_norm=False)
    options = SaveOptions(output_dir=str(tmp_path), export_format="universal", export_rank=8)
    assert not export_problems(options, mixed)
    assert any("in place of the LoRA and LoKr" in note for note in export_notes(options, mixed))
    tensors = load_file(Exporter(options, mixed).write(tmp_path / "a.safetensors", {}))
    down = "diffusion_model.blocks.0.self_attn.q_proj.lora_A.weight"
    assert len(tensors[down]) == 3 and not any("lokr" in key for key in tensors)
    (problem,) = export_problems(options, trained("lora", train_norm=False, **OPTIONS))
    assert "an OFT" in problem.message


def test_what_cannot_be_is_said_of_all_at_once():
    def problems(module=lora_anima, dim=4, **values):
        return [f"{p.where}: {p.message}" for p in module.check_network_args(dim, 1, **values)]

    told = problems(network_reg_kinds="a=dylora,b=lokr", lokr_factor="0", boft="true")
    assert any("a=dylora: no such kind. Known: lora, lokr, loha, oft." in line for line in told)
    assert any("lokr_factor=0" in line for line in told)
    assert any("boft: belongs to --network_module networks.oft_anima" in line for line in told)
    assert "expected regex=word" in problems(network_reg_kinds="lokr")[0]
    assert "OFT adds nothing" in problems(network_reg_kinds="a=oft", dora_wd="1")[0]
    (full,) = problems(lokr_anima, 100_000, network_reg_kinds="a=lora")
    assert "LoRA not: write lokr_full_matrix=true" in full
    with pytest.raises(ConfigError, match="network_reg_kinds 'nowhere'"):
        fresh(network_reg_kinds="nowhere=lokr")


def test_a_run_of_all_kinds_goes_on_from_its_state_to_the_bit(demo, run_folder):
    kinds = r"network_reg_kinds=.*\.mlp\.layer1=lokr,.*\.mlp\.layer2=loha,.*cross_attn.*=oft"
    settings = {
        "network_args": [kinds, "pissa=true", "rank_dropout=0.1"], "max_train_steps": 2,
        "save_state": True, "save_every_n_steps": 1, "no_metadata": True, "learning_rate": 1e-2, "report": "none",
    }  # fmt: skip
    argv = config_files(demo, run_folder, settings)
    make_trainer(argv).train()
    out = run_folder / "out"
    expected = (out / "run.safetensors").read_bytes()
    (out / "run-step00000001-state").rename(run_folder / "state")
    (out / "run.safetensors").unlink()
    make_trainer([*argv, "--resume", str(run_folder / "state")]).train()
    assert (out / "run.safetensors").read_bytes() == expected
