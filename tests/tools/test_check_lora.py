"""tools/check_lora.py: what is wrong with a file is found, and nothing is where nothing is."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_workshop.reader_words import EFFECTS, PHRASES
from library.errors import ConfigError, UserError
from library.reporting.page import blocks_of
from networks.codec import KeyDecoder, KeyStyle, encode, write_adapter
from networks.reader_rules import Effect
from networks.readers import READERS
from tests.helpers import documented
from tests.helpers.tiny import golden, tiny_transformer
from tests.helpers.workshop import of_every_kind
from tools.check_lora import main

COMMAND = "python tools/check_lora.py my_lora.safetensors --base anima-base-v1.0.safetensors --html my_lora_check.html"
BASE = golden("anima_tiny_dit.safetensors")
LORA, FULL = "adapter_lora", "adapter_lokr_full"
START = "diffusion_model.blocks.0.self_attn.q_proj."
DOWN, UP, ALPHA = (START + name for name in ("lora_down.weight", "lora_up.weight", "alpha"))
TRUE = {"ss_network_module": "networks.lora_anima", "ss_network_dim": "3", "ss_network_alpha": "2"}


def tensors_of(name=LORA):
    return load_file(golden(f"{name}.safetensors"))


def check(folder, tensors, metadata=None, *words, base=BASE):
    """(exit code, ids of findings by severity, the JSON document)"""
    file, told = folder / "a.safetensors", folder / "a.json"
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata)
    beside = ["--base", str(base)] if base else []
    code = main([str(file), *beside, "--json", str(told), "--overwrite", *words])
    document = json.loads(told.read_text(encoding="utf-8"))
    ids = {severity: set() for severity in ("note", "warning", "error")}
    for finding in document["findings"]:
        ids[finding["severity"]].add(finding["id"])
        assert finding["chinese"] and finding["english"] and finding["chinese"] != finding["english"]
    assert code == document["exit_code"]
    return code, ids, document


@pytest.mark.parametrize("name", [LORA, FULL, "adapter_lokr_low"])
def test_a_healthy_file_is_healthy(tmp_path, name, capsys):
    code, ids, document = check(tmp_path, tensors_of(name))
    assert (code, ids["warning"], ids["error"]) == (0, set(), set())
    assert document["coverage"]["targets"] == [40, 40] and document["left"] == {}
    assert document["readers"]["comfyui"]["takes"] == "all"
    assert "healthy" in capsys.readouterr().out


def changed(key, change, name=LORA):
    tensors = tensors_of(name)
    tensors[key] = change(tensors[key])
    return tensors


def broken(tensor):
    tensor[0, :2] = torch.tensor([torch.nan, torch.inf])
    return tensor


def all_of(ending, change, name=LORA):
    return {k: change(t) if k.endswith(ending) else t for k, t in tensors_of(name).items()}


def without(*parts):
    return {k: t for k, t in tensors_of().items() if not any(part in k for part in parts)}


FAULTS = {
    "values.not_finite": (3, lambda: changed(DOWN, broken)),
    "values.zero": (1, lambda: changed(UP, torch.zeros_like)),
    "values.nothing": (3, lambda: all_of("lora_up.weight", torch.zeros_like)),
    "modules.unfit": (3, lambda: changed(DOWN, lambda t: t[:, :-1])),
    "strength.larger_than_base": (1, lambda: changed(UP, lambda t: 10 * t)),
    "alpha.zero": (3, lambda: changed(ALPHA, torch.zeros_like)),
    "alpha.not_finite": (3, lambda: changed(ALPHA, lambda t: t * torch.inf)),
    "alpha.negative": (1, lambda: changed(ALPHA, torch.neg)),
    "alpha.missing": (1, lambda: without(ALPHA)),
    "alpha.other_scale": (1, lambda: changed(ALPHA, lambda t: t / 2)),
    "alpha.odd_of_full": (1, lambda: all_of("alpha", lambda t: t * torch.inf, FULL)),
    "coverage.blocks_missing": (1, lambda: without("blocks.1.mlp.layer1")),
    "keys.left": (1, lambda: {**tensors_of(), "diffusion_model.double.0.lora_up.weight": torch.ones(2)}),
    "readers.comfyui": (1, lambda: {k.replace("diffusion_model.", "transformer."): t
                                    for k, t in tensors_of().items()}),
    "dtype.small_in_fp16": (1, lambda: {k: (t * 1e-4).half() for k, t in tensors_of().items()}),
    "dtype.large_for_fp16": (1, lambda: {k: t * 1e9 if k == DOWN else t / 1e9 if k == UP else t
                                         for k, t in tensors_of().items()}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_decides_the_exit_code(tmp_path, fault):
    expected, tensors = FAULTS[fault]
    code, ids, _ = check(tmp_path, tensors(), TRUE if fault == "alpha.other_scale" else None)
    assert code == expected
    assert fault in ids["error" if code == 3 else "warning"]


def test_a_fault_is_counted_and_placed(tmp_path):
    tensors = changed(DOWN, broken)
    document = check(tmp_path, tensors)[2]
    (finding,) = [each for each in document["findings"] if each["id"] == "values.not_finite"]
    assert finding["where"] == [f"{DOWN}: 2"] and "(numbers: 2)" in finding["english"]
    tensors = all_of("lora_up.weight", lambda t: t)
    for block in (0, 1):
        tensors[UP.replace("blocks.0", f"blocks.{block}")].zero_()
    document = check(tmp_path, tensors)[2]
    (finding,) = [each for each in document["findings"] if each["id"] == "values.zero"]
    assert finding["english"] == "lora_up.weight: 2 of 40 hold nothing but 0."


@pytest.mark.parametrize("style", [KeyStyle.KOHYA, KeyStyle.PEFT, KeyStyle.BARE])
def test_how_keys_are_spelled_changes_no_figure(tmp_path, style):
    expected = check(tmp_path, tensors_of())[2]
    decoder = KeyDecoder(module["path"] for module in expected["modules"])
    keys = {key: decoder.decode(key) for key in tensors_of()}
    spelled = {encode(keys[k].path, keys[k].factor, style): t for k, t in tensors_of().items()}
    found = check(tmp_path, spelled)[2]
    assert found["modules"] == expected["modules"] and found["left"] == {}


def test_every_kind_is_measured_where_there_is_the_base(tmp_path):
    tensors = of_every_kind(tiny_transformer())
    _, ids, document = check(tmp_path, tensors)
    assert all(module["norm"] and module["relative"] for module in document["modules"])
    assert len(document["kinds"]) == 7 and not ids["error"]
    _, ids, document = check(tmp_path, tensors, base=None)
    unknown = [module for module in document["modules"] if module["norm"] is None]
    assert "modules.need_base" in ids["note"] and all(module["waits"] for module in unknown)
    assert {module["kind"] for module in unknown} == {"whole weight", "LoRA with DoRA"}


def test_without_a_base_the_published_sizes_are_expected(tmp_path):
    """340 targets and 156 norms; one module is far stronger than the others, one far weaker."""
    tensors = {}
    for block in range(28):
        name = f"diffusion_model.blocks.{block}.cross_attn.k_proj."
        size = {5: 40.0, 9: 1e-4}.get(block, 1.0)
        tensors[name + "lora_down.weight"] = torch.ones(1, 1024)
        tensors[name + "lora_up.weight"] = torch.full((2048, 1), size)
    code, ids, document = check(tmp_path, tensors, base=None)
    assert code == 1 and ids["warning"] == {"strength.exploded", "strength.dead"}
    assert document["coverage"]["targets"] == [28, 340] and document["coverage"]["norms"] == [0, 156]
    assert ids["note"] == {"coverage.kinds_missing", "alpha.none", "metadata.none"}
    where = {each["id"]: each["where"] for each in document["findings"]}
    assert [place.split(":")[0] for place in where["strength.exploded"]] == ["blocks.5.cross_attn.k_proj"]
    assert [place.split(":")[0] for place in where["strength.dead"]] == ["blocks.9.cross_attn.k_proj"]
    (code, ids, _) = check(tmp_path, tensors_of(), base=None)
    assert "modules.other_sizes" in ids["warning"]


FALSE = {
    "ss_network_module": "networks.lokr_anima",
    "ss_network_dim": "16",
    "ss_network_alpha": "7",
    "ss_network_args": "[not json",
    "ss_num_blocks": "28",
    "ss_adapted_parts": '{"blocks.*.mlp.layer1": 28}',
    "ss_steps": "0",
    "ss_base_model_version": "sdxl_base_v1-0",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.resolution": "1024",
    "sshs_model_hash": "0" * 64,
}


def test_what_the_metadata_says_falsely_is_named(tmp_path):
    code, ids, _ = check(tmp_path, tensors_of(), FALSE)
    assert code == 1
    assert {f"metadata.{entry}" for entry in FALSE} <= ids["warning"]


def test_what_the_metadata_says_truly_is_left_alone(tmp_path):
    file = tmp_path / "true.safetensors"
    metadata = {
        **TRUE, "ss_num_blocks": "2", "ss_steps": "300", "ss_max_train_steps": "1600",
        "ss_network_args": '{"train_norm": "true"}', "modelspec.architecture": "anima/lora",
        "ss_base_model_version": "anima", "modelspec.resolution": "1024x1024",
    }  # fmt: skip
    write_adapter(file, tensors_of(), metadata)
    main([str(file), "--base", str(BASE), "--json", str(tmp_path / "a.json")])
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    claims = {claim["entry"]: claim["is_true"] for claim in document["metadata"]}
    assert claims.pop("modelspec.resolution") is None and claims.pop("ss_network_args") is None
    assert len(claims) == 8 and all(claims.values())
    told = [finding["english"] for finding in document["findings"]]
    assert "Trained 300 steps of 1600." in told
    assert "Norms were to be trained (train_norm) and are not in this file." in told


def test_a_file_that_a_tool_made_may_have_other_scales(tmp_path):
    made = {"ss_made_from": json.dumps({"tool": "edit_lora.py", "files": ["a.safetensors"]})}
    code, ids, document = check(tmp_path, changed(ALPHA, lambda t: t / 2), TRUE | made)
    assert code == 0 and {"alpha.other_scale", "metadata.made_from"} <= ids["note"]
    assert "Made by edit_lora.py of a.safetensors." in [f["english"] for f in document["findings"]]


def test_the_factor_of_a_lokr_is_seen_in_its_matrices(tmp_path):
    """The golden LoKr has first matrices of 8 x 8."""
    tensors = tensors_of(FULL)
    for factor, is_true in (("8", True), ("4", False)):
        metadata = {"ss_network_args": json.dumps({"lokr_factor": factor})}
        document = check(tmp_path, tensors, metadata)[2]
        assert document["metadata"][0]["is_true"] is is_true


def test_the_page_and_the_json_on_the_console_have_all(tmp_path, capsys):
    file, html = golden(f"{LORA}.safetensors"), tmp_path / "a.html"
    code = main([str(file), "--base", str(BASE), "--html", str(html), "--json", "-"])
    document = json.loads(capsys.readouterr().out)
    assert (code, document["file"]) == (0, str(file)) and len(document["modules"]) == 40
    (data,) = [data for name, data in blocks_of(html.read_text(encoding="utf-8")) if name == "adapters"]
    kinds = [part["kind"] for part in data["parts"]]
    assert kinds == ["heat", "heat", "heat", "curves", *["table"] * 5]
    strengths = data["parts"][0]
    assert strengths["places"][0] == ["blocks.0", "self_attn.q_proj"]
    assert strengths["values"][0][1] == [module["norm"] for module in document["modules"]]


def test_reports_are_not_written_over_what_is_there(tmp_path):
    page, file = tmp_path / "page.html", golden(f"{LORA}.safetensors")
    page.write_text("mine")
    with pytest.raises(ConfigError, match="--overwrite") as found:
        main([str(file), "--html", str(page), "--json", str(tmp_path / "none" / "a.json")])
    assert len(found.value.problems) == 2
    with pytest.raises(ConfigError, match="read"):
        main([str(file), "--json", str(file), "--overwrite"])
    assert page.read_text() == "mine"


def test_what_is_no_adapter_is_told_in_one_error(tmp_path):
    for file in (BASE, tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(UserError):
            main([str(file)])


def test_another_models_file_is_an_error_of_the_file(tmp_path):
    names = ("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_te1_text_model_encoder_layers_0_mlp_fc1")
    tensors = {f"{name}.lora_up.weight": torch.ones(4, 2) for name in names}
    code, ids, document = check(tmp_path, tensors)
    assert code == 3 and ids["error"] == {"keys.none"} and len(document["left"]) == 2


def test_hostile_names_and_texts_are_shown_as_text(tmp_path, capsys):
    deep = "[" * 50_000
    odd = {entry: deep for entry in (*FALSE, "ss_tag_frequency", "ss_epoch")} | {
        "ss_optimizer": "\x1b[2J</script><img src=x>", "ss_learning_rate": "\u202e9" * 9000,
        "ss_steps": "9" * 5000, "ss_network_dim": "nan", "ss_network_alpha": "1e999",
    }  # fmt: skip
    tensors = {**tensors_of(), "\x1b[31m<b>.lora_up.weight": torch.ones(2, 2)}
    page = tmp_path / "a.html"
    code, ids, _ = check(tmp_path, tensors, odd, "--html", str(page))
    assert code == 1 and {f"metadata.{entry}" for entry in ("ss_steps", "ss_network_dim")} <= ids["warning"]
    told = capsys.readouterr().out
    assert "\x1b" not in told and "\u202e" not in told and max(map(len, told.splitlines())) < 400
    assert "<b>" not in page.read_text(encoding="utf-8")


def test_every_phrase_about_programs_has_its_chinese():
    phrases = {each.what for reader in READERS for each in (*reader.rules, *reader.wants)}
    assert phrases == PHRASES.keys() and set(Effect) == EFFECTS.keys()


@documented.runs(COMMAND)
def test_the_command_ends_with_the_code_of_the_worst_finding(tmp_path, command):
    save_file(changed(ALPHA, torch.neg), tmp_path / "my_lora.safetensors")
    shutil.copy(BASE, tmp_path / "anima-base-v1.0.safetensors")
    done = documented.run(command, tmp_path)
    assert done.returncode == 1 and "written: my_lora_check.html" in done.stdout, done.stderr
    assert "Alpha is below 0" in done.stdout
