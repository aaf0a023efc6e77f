"""Make a demo: three small model files of true layout, two tokenizers, and captioned pictures.

python tools/make_demo.py [--output demo] [--seed 0] [--tokenizers DIR] [--size true] [--only dit]
python tools/make_demo.py --base drawing [--output demo] [--seed 0]
python tools/make_demo.py --learn [--seed 0]

The weights are random, which shows that training works, or, with --base drawing, those of a base that
draws six places at 128 pixels. --learn learns that base anew into tools/demo_base. The same seed gives
the same bytes.
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import io
import json
import random
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from library.anima_runtime import tokenizer_assets
from library.errors import ConfigError, UserError
from library.system.program import run_main
from library.utils import atomic_write
from tools import _demo_base
from tools import _demo_layouts as layouts
from tools import _demo_weights as weights
from tools._demo_pictures import KNOWN_CAPTIONS, NEW_CAPTION, NEW_PLACE, SCENES, draw_scene
from tools._demo_tokenizers import train_qwen, train_t5
from tools._demo_variations import varied_picture

FILES = {"dit": _demo_base.DIT, "qwen": _demo_base.QWEN, "vae": _demo_base.VAE}
SCALES = {"dit": weights.dit_scale, "qwen": weights.qwen_scale, "vae": weights.vae_scale}
TOKENIZER_FOLDERS = {"qwen": ("qwen3", "qwen_tokenizer"), "t5": ("t5", "t5_tokenizer")}
TOKENIZER_FILES = (
    *("vocab.json", "merges.txt", "spiece.model", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "config.json"),
)
RANDOM, DRAWING = "random", "drawing"
NEW_PICTURES, KNOWN_PICTURES = 8, 2  # of each place
README = """\
Demo files of the Anima trainer, made by tools/make_demo.py
===========================================================
{english}
The pictures in pictures/ are drawn by the same tool. Everything here may be deleted and made again.

Anima 训练器的演示文件，由 tools/make_demo.py 生成
===================================================
{chinese}
pictures/ 里的图片由同一个工具绘制。这里的所有文件都可以删除并重新生成。
"""
OF_BASE = {
    RANDOM: {
        "english": """\
The model files in models/ have the true layout and RANDOM weights. They show that training runs;
they draw no real pictures, and a LoRA trained on them is of no use with the real Anima.""",
        "chinese": """\
models/ 里的模型文件结构与真实模型一致，但权重是随机的：只用来确认训练流程能跑通，
画不出真正的图片；用它们训练出的 LoRA 也不能用于真正的 Anima。""",
    },
    DRAWING: {
        "english": """\
The model files in models/ have the true layout and tiny sizes. They draw six places at 128 pixels:
meadow, night, beach, mountain, city, cherry blossoms. A LoRA trained on them is of no use with the
real Anima. new_pictures/ shows a place that they cannot draw yet, known_pictures/ those that they
can, which keeps training from forgetting them.""",
        "chinese": """\
models/ 里的模型文件结构与真实模型一致，尺寸很小，能以 128 像素画出六个场景：
草地、夜空、海滩、雪山、城市、樱花。用它们训练出的 LoRA 不能用于真正的 Anima。
new_pictures/ 里是它们还不会画的场景；known_pictures/ 里是已经会画的，训练时用来防止遗忘。""",
    },
}
CONFIGS = {
    RANDOM: ("configs/smoke/anima_10steps_train_args.toml", "configs/smoke/anima_dataset.toml"),
    DRAWING: ("configs/quickstart/anima_train_args.toml", "configs/quickstart/anima_dataset.toml"),
}
SUMMARY = {
    RANDOM: "The weights are random: they show that training works, they draw no real pictures.",
    DRAWING: "The weights draw six places at 128 pixels: meadow, night, beach, mountain, city, blossoms.",
}


def main() -> None:
    """Make what the command line asks for."""
    args = setup_parser().parse_args()
    check(args)
    if args.learn:
        learn_base(args.seed)
        return
    is_true = args.size == "true"
    output = Path(args.output or ("demo/true_size" if is_true else "demo"))
    models = output / "models"
    make_folder(models)
    if args.base == DRAWING:
        write_tokenizers(models, _demo_base.tokenizer_files())
        for name, content in _demo_base.model_files().items():
            write_file(models / name, content)
    else:
        write_random_models(args, models)
    if not is_true and not args.only:
        write_pictures(output / "pictures", args.seed)
    if args.base == DRAWING:
        write_places(output / "new_pictures", {NEW_PLACE: NEW_CAPTION}, NEW_PICTURES, args.seed)
        write_places(output / "known_pictures", KNOWN_CAPTIONS, KNOWN_PICTURES, args.seed)
    write_file(output / "README.txt", README.format(**OF_BASE[args.base]).encode())
    print_summary(output, args)


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    if not args.learn and args.base == RANDOM:
        return
    given = [
        name
        for name, is_given in (
            ("--tokenizers", args.tokenizers),
            ("--size true", args.size == "true"),
            ("--only", args.only),
            ("--output", args.learn and args.output),
            ("--base", args.learn and args.base == DRAWING),
        )
        if is_given
    ]
    if given:
        own = "--learn" if args.learn else f"--base {DRAWING}"
        raise ConfigError(
            f"{own} does not go with {', '.join(given)}: the base that draws has its own tokenizers"
            f" and sizes, and --learn writes to tools/demo_base. Leave {given[0]} out."
        )


def learn_base(seed: int) -> None:
    """Learn the base that draws anew and keep it where --base drawing finds it."""
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"--learn needs torch 2.9 or newer; this is {torch.__version__}.")
    tokenizers = tokenizer_files(None)
    rows = table_rows(None, tokenizers)
    make_folder(_demo_base.FOLDER)
    for name, content in _demo_base.learn(tokenizers, rows, seed).items():
        write_file(_demo_base.FOLDER / name, content)
    print(f"Learned into {_demo_base.FOLDER}. Next: python tools/make_demo.py --base {DRAWING}")


def write_random_models(args: argparse.Namespace, models: Path) -> None:
    """Write models of random weights, and tokenizers."""
    is_true = args.size == "true"
    rows = {"qwen": layouts.TRUE_QWEN.rows, "t5": layouts.TRUE_DIT.t5_rows}
    if args.tokenizers or not is_true:
        files = tokenizer_files(args.tokenizers)
        rows = rows if is_true else table_rows(args.tokenizers, files)
        if not args.only:
            write_tokenizers(models, files)
    shapes = model_shapes(is_true, rows)
    for kind in [args.only] if args.only else list(FILES):
        write_weights(kind, models / FILES[kind], shapes[kind], args.seed)


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
    parser.add_argument(
        "--base",
        choices=(RANDOM, DRAWING),
        default=RANDOM,
        help="random weights, or those of a base that draws",
    )
    parser.add_argument(
        "--learn",
        action="store_true",
        help="learn the base that draws anew, on the CPU, into tools/demo_base; takes many minutes",
    )
    return parser


def model_shapes(is_true: bool, rows: Mapping[str, int]) -> dict[str, layouts.Shapes]:
    """Names and shapes of each model's tensors; the tiny ones have tables of `rows` rows."""
    if is_true:
        dit, qwen, vae_width = layouts.TRUE_DIT, layouts.TRUE_QWEN, layouts.TRUE_VAE_WIDTH
    else:
        vae_width = layouts.TINY_VAE_WIDTH
        dit = layouts.tiny_dit(128, 2, rows["t5"])
        qwen = layouts.tiny_qwen(rows["qwen"])
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


def round_up(count: int) -> int:
    """The next multiple of 64, as tables are padded."""
    return -(-count // 64) * 64


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


def write_places(folder: Path, places: Mapping[str, str], count: int, seed: int) -> None:
    """Draw each place so many times; places: name to caption."""
    make_folder(folder)
    for place, caption in places.items():
        for number in range(1, count + 1):
            name = f"{place}_{number}"
            image = varied_picture(place, random.Random(f"{seed}/{name}"), size=(256, 256))
            content = io.BytesIO()
            image.save(content, "PNG")
            write_file(folder / f"{name}.png", content.getvalue())
            write_file(folder / f"{name}.txt", (caption + "\n").encode())


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


def print_summary(output: Path, args: argparse.Namespace) -> None:
    """What was made, what it is not, and the next command."""
    is_true, only = args.size == "true", args.only
    made = [FILES[only]] if only else list(FILES.values())
    print(f"Made in {output}:")
    for name in made:
        print(f"  models/{name:<28} {(output / 'models' / name).stat().st_size / 1e6:9.1f} MB")
    if not only and (output / "models" / "qwen_tokenizer").is_dir():
        print("  models/qwen_tokenizer/, models/t5_tokenizer/")
    if not only and not is_true:
        print(f"  pictures/: {len(SCENES)} pictures with captions")
    if args.base == DRAWING:
        print(f"  new_pictures/: {NEW_PICTURES} pictures of what the base cannot draw yet")
        print("  known_pictures/: what it can draw, for regularisation")
    print(SUMMARY[args.base])
    if only or is_true:
        return
    configs = CONFIGS[args.base]
    print("Next:")
    print("  accelerate launch anima_train_network.py", end=" ")
    print(f"--config_file {configs[0]} --dataset_config {configs[1]}")
    if output.resolve() != Path("demo").resolve():
        print(f"  (with the paths of those two files changed from demo/ to {output}/)")


if __name__ == "__main__":
    run_main(main)
