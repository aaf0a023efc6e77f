"""What other programs make of a file: the table against others, written apart, and hostile files."""

import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.anima_runtime.family import ANIMA_FILES
from library.errors import UserError
from library.saving.checkpoints import universal_file
from library.saving.exporting import Exporter
from library.settings.flags.save import SaveOptions
from library.system.tensor_files import read_header
from networks.kinds.table import KINDS
from networks.reader_rules import Effect
from networks.readers import READERS, Answer, lines, verdicts
from networks.workshop.adapter_file import adapter_header
from tests.helpers.hostile_files import examples, spoiled
from tests.helpers.pages import FORMATS
from tests.helpers.reader_tables import PROGRAMS, fate
from tests.helpers.trained_networks import trained
from tests.helpers.written_adapters import DOTTED, FLAT, prefix

IDS = {reader.name: reader.id for reader in READERS}
GOOD = {
    "ss_base_model_version": "anima",
    "modelspec.architecture": "anima/lora",
    "modelspec.resolution": "1024x1024",
    "sshs_model_hash": "0" * 64,
    "ss_tag_frequency": '{"5_a": {"cat": 2}}',
}


def written(folder, name, **options):
    """The keys of the file that is saved of a network, and of its universal form."""
    network = trained(name, **options)
    form = "comfy" if options.get("train_norm", True) else "both"
    settings = SaveOptions(output_dir=str(folder), export_format=form, verify_export=False)
    file = Exporter(settings, network).write(folder / "a.safetensors", {})
    return [
        list(read_header(path).entries) for path in (file, universal_file(file)) if path.exists()
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Keys of files: as we write them, and the same rewritten."""
    make = partial(written, tmp_path_factory.mktemp("files"))
    (norms,), (lokr_norms,) = make("lora"), make("lokr low")
    lora, universal = make("lora", train_norm=False)
    lokr, universal_lokr = make("lokr low", train_norm=False)
    modules = [key.removesuffix(".alpha") for key in lora if key.endswith(".alpha")]
    found = {
        "lora": lora,
        "lora with norms": norms,
        "lokr": lokr,
        "lokr with norms": lokr_norms,
        "loha": [f"{m}.{factor}" for m in modules for factor in KINDS["LoHa"].factors],
        "no llm_adapter": [key for key in lora if "llm_adapter" not in key],
    }
    found |= {f"flat {name}": [flat(key) for key in keys] for name, keys in found.items()}
    return found | {"universal": universal, "universal lokr": universal_lokr}


def flat(key):
    path, factor = re.match(r"diffusion_model\.(.*?)\.(lo[rk]|hada|alpha|w_norm)", key).groups()
    rest = key.removeprefix(f"diffusion_model.{path}.")
    assert rest.startswith(factor)
    return f"lora_unet_{path.replace('.', '_')}.{rest}"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return tmp_path_factory.mktemp("stranger") / "a.safetensors"


def of(reader, keys, metadata=GOOD):
    (found,) = [v for v in verdicts(keys, metadata, ANIMA_FILES) if v.reader.name == reader]
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_verdict_is_that_of_the_tables_written_apart(files, program):
    for name, keys in files.items():
        refused, dropped = fate(program, keys)
        found = of(program, keys)
        effects = {finding.effect for finding in found.findings}
        assert (Effect.REFUSES in effects) is refused, (name, found.text)
        if not refused:
            mine = [key for f in found.findings if f.effect is Effect.DROPS for key in f.keys]
            assert set(mine) == dropped and len(mine) == len(dropped), (name, found.text)
        assert (found.answer is Answer.ALL) is not (refused or dropped), name


def test_a_universal_file_loads_everywhere_and_a_file_for_comfyui_does_not(files):
    universal = verdicts(files["universal"], GOOD, ANIMA_FILES)
    assert [v.answer for v in universal] == [Answer.ALL] * len(READERS)
    assert {v.taken for v in universal} == {40}
    assert lines(universal) == [", ".join(reader.name for reader in READERS) + ": all of it"]
    norms = {v.reader.id: v for v in verdicts(files["lora with norms"], GOOD, ANIMA_FILES)}
    refusing = [name for name, verdict in norms.items() if verdict.answer is Answer.NONE]
    assert refusing == ["invokeai", "diffusers"]
    assert norms["invokeai"].text == (
        "InvokeAI: nothing of it; refuses the whole file for differences of norms "
        "(24 keys of 24 modules)"
    )
    assert norms["diffusers"].text == (
        "diffusers: nothing of it; refuses the whole file for alpha (40 keys of 40 modules), "
        "differences of norms (24 keys of 24 modules), lora_down and lora_up (80 keys of 40 modules)"
    )
    assert [f.id for f in norms["diffusers"].findings] == [
        "diffusers.alpha",
        "diffusers.norms",
        "diffusers.down_up",
    ]


LAYER = "diffusion_model.blocks.0.mlp.layer1"
PLAIN = [f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"]
FLAT_LAYER = "lora_unet_blocks_0_self_attn_q_proj"
FLAT_PLAIN = [f"{FLAT_LAYER}.lora_down.weight", f"{FLAT_LAYER}.lora_up.weight"]
FOUND = {  # id of a finding: keys beside a LoRA that is taken, the last of which it is about
    "comfyui.names": ["blocks.0.mlp.layer2.lora_A.weight"],
    "comfyui.lokr_spelling": [f"{LAYER}.lokr_w1.weight"],
    "comfyui.up_alone": ["diffusion_model.blocks.0.mlp.layer2.lora_up.weight"],
    "comfyui.halves": ["diffusion_model.blocks.0.mlp.layer2.lora_down.weight"],
    "comfyui.magnitude": [f"{LAYER}.lora_magnitude_vector"],
    "comfyui.norm_biases": ["diffusion_model.llm_adapter.norm.b_norm"],
    "comfyui.whole_weights": ["diffusion_model.t_embedding_norm.weight"],
    "comfyui.unknown": [f"{LAYER}.hada_t1"],
    "forge_neo.text_encoder": ["text_encoders.qwen3_06b.transformer.model.norm.w_norm"],
    "sd_next.names": ["transformer.blocks.0.mlp.layer2.lora_A.weight"],
    "sd_next.flat_front": ["lora_unet_llm_adapter_out_proj.lokr_w1"],
    "sd_next.lokr_spelling": [f"{LAYER}.lokr_w1.weight"],
    "sd_next.lora_spelling": ["diffusion_model.x_embedder.proj.1.lora.up.weight"],
    "sd_next.halves": ["diffusion_model.blocks.0.mlp.layer2.lora_down.weight"],
    "sd_next.set_weight": ["diffusion_model.blocks.0.mlp.layer2.set_weight"],
    "sd_next.bias_diff": ["diffusion_model.llm_adapter.out_proj.bias.diff"],
    "sd_next.oft": ["diffusion_model.blocks.0.mlp.layer2.oft_blocks"],
    "sd_next.whole_weights": ["diffusion_model.t_embedding_norm.weight"],
    "sd_next.unknown": ["diffusion_model.t_embedding_norm.lora_C"],
    "invokeai.norms": ["diffusion_model.t_embedding_norm.w_norm"],
    "invokeai.loha": ["diffusion_model.final_layer.linear.hada_w1_a"],
    "invokeai.full_rank": ["diffusion_model.final_layer.linear.diff"],
    "invokeai.layers": [f"{LAYER}.lora_magnitude_vector"],
    "invokeai.names": ["text_encoders.qwen3_06b.transformer.model.norm.lokr_w1"],
    "invokeai.alpha": [f"{LAYER}.alpha"],
    "invokeai.dora": [f"{LAYER}.dora_scale"],
    "diffusers.dora": [f"{LAYER}.dora_scale"],
    "diffusers.alpha": [f"{LAYER}.alpha"],
    "diffusers.norms": ["diffusion_model.t_embedding_norm.w_norm"],
    "diffusers.lokr": ["diffusion_model.final_layer.linear.lokr_w1"],
    "diffusers.no_lora": ["diffusion_model.final_layer.linear.diff"],
    "diffusers.names": [*FLAT_PLAIN[1:], *FLAT_PLAIN[:1]],
    "diffusers.embeddings": ["diffusion_model.llm_adapter.embed.lora_A.weight"],
    "diffusers.down_up": ["diffusion_model.final_layer.linear.lora_down.weight"],
    "diffusers.spelling": ["diffusion_model.final_layer.linear.lora_A.default.weight"],
    "diffusers.unknown": ["diffusion_model.final_layer.linear.lora_C"],
}
FOUND_FLAT = {
    "invokeai.names": [f"{LAYER}.lokr_w1"],
    "invokeai.flat_norms": ["lora_unet_t_embedding_norm.w_norm"],
    "invokeai.flat_feed_forward": ["lora_unet_blocks_1_mlp_layer2.lokr_w1"],
    "invokeai.flat_others": ["lora_unet_final_layer_linear.lokr_w1"],
    "invokeai.loha": [f"{FLAT_LAYER}.dora_scale", f"{FLAT_LAYER}.hada_w1_a"],
    "invokeai.layers": ["lora_unet_blocks_1_self_attn_q_proj.alpha"],
}
CASES = [(PLAIN, id, keys) for id, keys in FOUND.items()]
CASES += [(FLAT_PLAIN, id, keys) for id, keys in FOUND_FLAT.items()]


@pytest.mark.parametrize(("beside", "id", "keys"), CASES, ids=[f"{c[1]} {c[2][-1]}" for c in CASES])
def test_each_rule_is_about_the_keys_that_it_names(beside, id, keys):
    (reader,) = [reader.name for reader in READERS if reader.id == id.partition(".")[0]]
    assert of(reader, PLAIN).findings == ()
    found = {f.id: f for f in of(reader, [*beside, *keys]).findings}
    assert keys[-1] in found[id].keys and not {*found[id].keys} & {*PLAIN, *FLAT_PLAIN} - {*keys}


def test_the_documents_table_has_every_program():
    section = FORMATS.read_text(encoding="utf-8").partition("| program | takes |")[2]
    table = section.partition("\n\n")[0]
    names = {
        name
        for line in table.splitlines()
        for name in re.split(", ", line[1:].split("|")[0].strip())
    }
    for reader in READERS:
        for name in reader.name.split(" and "):
            assert any(cell.startswith(name) for cell in names), name


def test_every_rule_has_an_example():
    of_table = {f"{r.id}.{rule.id}" for r in READERS for rule in r.rules}
    comfys = {
        f"{program}.{id.partition('.')[2]}"
        for program in ("swarmui", "forge_neo")
        for id in FOUND
        if id.startswith("comfyui.")
    }
    assert of_table == {*FOUND, *FOUND_FLAT, *comfys, "invokeai.no_blocks"}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "knows"),
    [
        (["diffusion_model.llm_adapter.blocks.0.mlp.0.lokr_w1"], False),
        (["lora_unet_llm_adapter_blocks_0_self_attn_q_proj.lokr_w1"], True),
        (["transformer.blocks.0.self_attn.q_proj.lokr_w1"], True),
        (["net.blocks.0.self_attn.q_proj.lokr_w1"], False),
        ([], True),
    ],
)
def test_invokeai_looks_for_a_block(keys, knows):
    assert ("invokeai.no_blocks" in [f.id for f in of("InvokeAI", keys).findings]) is not knows


@pytest.mark.parametrize(
    ("name", "value", "ids"),
    [
        ("ss_base_model_version", "sdxl", ["sd_next.base_model"]),
        ("modelspec.architecture", None, ["swarmui.architecture"]),
        ("modelspec.resolution", "1024", ["swarmui.resolution"]),
        ("sshs_model_hash", "", ["lora_manager.hash"]),
        ("ss_tag_frequency", '{"a": {}, "b": {}}', ["lora_manager.tags"]),
        ("ss_tag_frequency", "{", ["lora_manager.broken_tags"]),
        ("ss_tag_frequency", "[" * 100_000, ["lora_manager.broken_tags"]),
        ("ss_tag_frequency", '{"a": ' + "1" * 10_000 + "}", ["lora_manager.broken_tags"]),
        ("ss_tag_frequency", "[]", ["lora_manager.broken_tags"]),
        ("ss_tag_frequency", None, []),
    ],
)  # fmt: skip
def test_what_programs_look_for_in_the_metadata(name, value, ids):
    metadata = {key: text for key, text in {**GOOD, name: value}.items() if text is not None}
    found = verdicts(PLAIN, metadata, ANIMA_FILES)
    assert [f.id for v in found for f in v.findings] == ids
    assert {v.answer for v in found} == {Answer.ALL}


ANY_KEYS = st.lists(
    st.text(max_size=30)
    | st.builds(
        lambda start, path, end: f"{start}{path}.{end}",
        st.sampled_from(
            [*(prefix(style, "").rstrip(".") for style in (*DOTTED, *FLAT)), "lora_te_"]
        ),
        st.sampled_from(["blocks.0.mlp.layer1", "blocks_0_mlp_layer1", "llm_adapter_", "\ud800"]),
        st.sampled_from([*KINDS.endings, *KINDS.refused, "", "lora_C", "\x1b[2J"]),
    ),
    max_size=12,
)
ANY_METADATA = st.dictionaries(
    st.sampled_from([*GOOD]) | st.text(max_size=5),
    st.text(max_size=20) | st.sampled_from(["[" * 5000, "NaN", '{"a": 1e999}', "1" * 5000]),
    max_size=5,
)


@examples(50)
@given(ANY_KEYS, ANY_METADATA)
def test_whatever_a_file_holds_each_program_has_a_verdict(keys, metadata):
    found = verdicts(keys, metadata, ANIMA_FILES)
    assert [v.reader for v in found] == list(READERS) and lines(found)
    for verdict in found:
        told = [key for finding in verdict.findings for key in finding.keys]
        assert {*told} <= {*keys} and len(told) <= len(keys)


SOUND = [(key, "F32", (2, 2)) for key in (*PLAIN, *FLAT_PLAIN, f"{LAYER}.lora_magnitude_vector")]


@examples(60)
@given(spoiled(SOUND))
def test_a_file_from_a_stranger_has_verdicts_or_is_refused_in_words(stranger, content):
    stranger.write_bytes(content)
    try:
        header = adapter_header(stranger)
    except UserError:
        return
    assert len(verdicts(header.entries, header.metadata, ANIMA_FILES)) == len(READERS)
