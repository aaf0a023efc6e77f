"""Make a demo: three small model files of true layout, two tokenizers, and captioned pictures.

python tools/make_demo.py [--output demo] [--seed 0] [--tokenizers DIR] [--size true] [--only dit]

The weights are random: they show that training works, they draw no real pictures. The same seed
gives the same bytes.
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import json
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path

from library.anima_runtime import tokenizer_assets
from library.errors import ConfigError, UserError
from library.system.program import run_main
from library.utils import atomic_write
from tools import _demo_layouts as layouts
from tools import _demo_weights as weights
from tools._demo_pictures import SCENES, draw_scene
from tools._demo_tokenizers import train_qwen, train_t5

FILES = {
    "dit": "anima_dit.safetensors",
    "qwen": "qwen_3_06b.safetensors",
    "vae": "qwen_image_vae.safetensors",
}
SCALES = {"dit": weights.dit_scale, "qwen": weights.qwen_scale, "vae": weights.vae_scale}
TOKENIZER_FOLDERS = {"qwen": ("qwen3", "qwen_tokenizer"), "t5": ("t5", "t5_tokenizer")}
TOKENIZER_FILES = (
    *("vocab.json", "merges.txt", "spiece.model", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "config.json"),
)
README = """\
Demo files of the Anima trainer, made by tools/make_demo.py
===========================================================
The model files in models/ have the true layout and RANDOM weights. They show that training runs;
they draw no real pictures, and a LoRA trained on them is of no use with the real Anima.
The pictures in pictures/ are drawn by the same tool. Everything here may be deleted and made again.

Anima 训练器的演示文件，由 tools/make_demo.py 生成
===================================================
models/ 里的模型文件结构与真实模型一致，但权重是随机的：只用来确认训练流程能跑通，
画不出真正的图片；用它们训练出的 LoRA 也不能用于真正的 Anima。
pictures/ 里的图片由同一个工具绘制。这里的所有文件都可以删除并重新生成。
"""


def main() -> None:
    """Make what the command line asks for."""
    args = setup_parser().parse_args()
    is_true = args.size == "true"
    output = Path(args.output or ("demo/true_size" if is_true else "demo"))
    models = output / "models"
    make_folder(models)
    rows = {"qwen": layouts.TRUE_QWEN.rows, "t5": layouts.TRUE_DIT.t5_rows}
    if args.tokenizers or not is_true:
        files = tokenizer_files(args.tokenizers)
        rows = rows if is_true else table_rows(args.tokenizers, files)
        if not args.only:
            write_tokenizers(models, files)
    shapes = model_shapes(is_true, rows)
    for kind in [args.only] if args.only else list(FILES):
        write_weights(kind, models / FILES[kind], shapes[kind], args.seed)
    if not is_true and not args.only:
        write_pictures(output / "pictures", args.seed)
    write_file(output / "README.txt", README.encode())
    print_summary(output, is_true, args.only)


def setup_parser() -> argparse.ArgumentParser:
    """The tool's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--output", help="folder to write to; demo, or demo/true_size, by default")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument(
        "--tokenizers",
        type=Path,
        help="folder with existing tokenizers in qwen3/ and t5/ (or qwen_tokenizer/ and"
        " t5_tokenizer/), copied instead of training small ones",
    )
    parser.add_argument("--size", choices=("tiny", "true"), default="tiny")
    parser.add_argument(
        "--only", choices=tuple(FILES), help="write this model file and nothing else"
    )
    return parser


def model_shapes(is_true: bool, rows: Mapping[str, int]) -> dict[str, layouts.Shapes]:
    """Names and shapes of each model's tensors; the tiny ones have tables of `rows` rows."""
    if is_true:
        dit, qwen, vae_width = layouts.TRUE_DIT, layouts.TRUE_QWEN, layouts.TRUE_VAE_WIDTH
    else:
        vae_width = 8
        dit = layouts.DiTSize(
            width=128,
            blocks=2,
            head=32,
            modulation=32,
            context=64,
            adapter_blocks=2,
            adapter_head=32,
            t5_rows=rows["t5"],
        )
        qwen = layouts.QwenSize(
            width=64, layers=2, head=32, heads=4, kv_heads=2, hidden=160, rows=rows["qwen"]
        )
    return {
        "dit": layouts.dit_shapes(dit),
        "qwen": layouts.qwen_shapes(qwen),
        "vae": layouts.vae_shapes(vae_width),
    }


def tokenizer_files(source: Path | None) -> dict[str, dict[str, bytes]]:
    """Folder name -> file name -> content, copied from `source` or trained on the captions."""
    if source is None:
        captions = [scene.caption for scene in SCENES]
        return {"qwen_tokenizer": train_qwen(captions), "t5_tokenizer": train_t5(captions)}
    found = {}
    for kind, folder in find_tokenizers(source).items():
        present = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        found[f"{kind}_tokenizer"] = {file.name: file.read_bytes() for file in present}
    return found


def find_tokenizers(source: Path) -> dict[str, Path]:
    """The folders of both tokenizers under `source`; ConfigError when one is not there."""
    found = {}
    for kind, names in TOKENIZER_FOLDERS.items():
        folders = [source / name for name in names if (source / name).is_dir()]
        if not folders:
            wanted = " or ".join(names)
            raise ConfigError(f"--tokenizers {source}: has no folder {wanted} with that tokenizer.")
        found[kind] = folders[0]
    return found


def table_rows(source: Path | None, files: Mapping[str, Mapping[str, bytes]]) -> dict[str, int]:
    """Rows of the embedding tables: the true ones for real tokenizers, else room for every id."""
    if source is None:
        vocabulary = json.loads(files["qwen_tokenizer"]["vocab.json"])
        t5 = json.loads(files["t5_tokenizer"]["config.json"])
        return {"qwen": round_up(len(vocabulary) + 1), "t5": round_up(t5["vocab_size"])}
    folders = find_tokenizers(source)
    qwen = tokenizer_assets.load_qwen_tokenizer(folders["qwen"])
    t5 = tokenizer_assets.load_t5_tokenizer(folders["t5"])
    rows = {}
    for kind, tokenizer in (("qwen", qwen), ("t5", t5)):
        facts = tokenizer_assets.KINDS[kind]
        is_real = len(tokenizer) == facts.real_length
        rows[kind] = facts.real_rows if is_real else round_up(len(tokenizer))
        tokenizer_assets.check_tokenizer(kind, tokenizer, rows[kind])
    return rows


def round_up(count: int, multiple: int = 64) -> int:
    """The next multiple, as tables are padded."""
    return -(-count // multiple) * multiple


def write_weights(kind: str, path: Path, shapes: layouts.Shapes, seed: int) -> None:
    """Write one model file, with a progress bar when it is large."""
    from tqdm import tqdm

    size = 2 * sum(prod(shape) for shape in shapes.values())
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(f"{path}: needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there.")
    bar = tqdm(desc=path.name, total=size, unit="B", unit_scale=True, disable=size < 1e8)
    try:
        with bar, atomic_write(path) as temporary:
            for written in weights.write_model(temporary, shapes, SCALES[kind], seed):
                bar.update(written - bar.n)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_tokenizers(models: Path, files: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write the tokenizers' folders; files of another tokenizer, from an earlier run, go."""
    for folder, contents in files.items():
        make_folder(models / folder)
        for name in TOKENIZER_FILES:
            if name not in contents:
                (models / folder / name).unlink(missing_ok=True)
        for name, content in contents.items():
            write_file(models / folder / name, content)


def write_pictures(folder: Path, seed: int) -> None:
    """Draw the pictures and write their captions beside them."""
    make_folder(folder)
    for scene in SCENES:
        write_file(folder / scene.file, draw_scene(scene, seed))
        write_file((folder / scene.file).with_suffix(".txt"), (scene.caption + "\n").encode())


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def write_file(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error of a place that cannot be written to."""
    reason = error.strerror or error
    return UserError(f"{path}: cannot be written ({reason}). Choose another folder with --output.")


def print_summary(output: Path, is_true: bool, only: str | None) -> None:
    """What was made, what it is not, and the next command."""
    made = [FILES[only]] if only else list(FILES.values())
    print(f"Made in {output}:")
    for name in made:
        print(f"  models/{name:<28} {(output / 'models' / name).stat().st_size / 1e6:9.1f} MB")
    if not only and (output / "models" / "qwen_tokenizer").is_dir():
        print("  models/qwen_tokenizer/, models/t5_tokenizer/")
    if not only and not is_true:
        print(f"  pictures/: {len(SCENES)} pictures with captions")
    print("The weights are random: they show that training works, they draw no real pictures.")
    if only or is_true:
        return
    print("Next:")
    print("  accelerate launch anima_train_network.py", end=" ")
    print("--config_file configs/smoke/anima_10steps_train_args.toml", end=" ")
    print("--dataset_config configs/smoke/anima_dataset.toml")
    if output.resolve() != Path("demo").resolve():
        print(f"  (with the paths of those two files changed from demo/ to {output}/)")


if __name__ == "__main__":
    run_main(main)
