"""One command to a first result: install, make the demo, train a LoKr on it, show what it draws."""

import argparse
import json
import struct
import sys
import time
from pathlib import Path

from tools import _environment as environment
from tools._environment import ROOT, StepFailed, run

TRAIN_CONFIG = "configs/quickstart/anima_train_args.toml"
DATASET_CONFIG = "configs/quickstart/anima_dataset.toml"
OUTPUT = ROOT / "output" / "quickstart"
NAME, STEPS = "lavender", 120


def read_safetensors(path: Path) -> tuple[dict[str, dict], bytes]:
    """Header and data of a safetensors file; the format is a length, a JSON header, then bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def check_result(final: Path, step_file: Path) -> str:
    """What is in the trained file, in one line; raises StepFailed if it is not what it must be."""
    header, data = read_safetensors(final)
    header.pop("__metadata__", None)
    foreign = [key for key in header if not key.startswith("diffusion_model.")]
    if foreign:
        raise StepFailed(f"{final}: {len(foreign)} keys ComfyUI would not read, e.g. {foreign[0]}")
    second = [key for key in header if key.endswith((".lokr_w2_b", ".lokr_w2"))]
    still_zero = [key for key in second if not any(data[slice(*header[key]["data_offsets"])])]
    if not second or still_zero:
        raise StepFailed(f"{final}: {len(still_zero)} of {len(second)} second matrices are still zero.")
    _, step_data = read_safetensors(step_file)
    if step_data != data:
        raise StepFailed(f"{step_file} and {final} should hold the same weights and do not.")
    return f"{len(header)} tensors, all with ComfyUI keys; all {len(second)} layers have learned"


def closing_words(summary: str, seconds: float) -> str:
    """What a new user needs next, in both languages."""
    commands = "\n".join(f"  {command}" for command in environment.commands_run)
    python = "python" if not environment.VENV.exists() else environment.venv_python()
    return f"""
Done in {seconds:.0f} s. / 完成，用时 {seconds:.0f} 秒。
  file / 文件:  {OUTPUT / (NAME + ".safetensors")}  ({summary})
  drawn / 画出: {OUTPUT / "sample" / (NAME + "_sheet.jpg")}
  report / 报告: {OUTPUT / (NAME + "_report.html")}
  TensorBoard:  {python} -m tensorboard.main --logdir {OUTPUT / "logs"}

The demo's tiny base draws six places; the LoKr has taught it a lavender field. "drawn" and the report show
both before and after.
演示用的小底模会画六个场景；LoKr 教会了它画薰衣草田。图片和报告里有训练前后的对比。

Next / 下一步:
  1. Get the real Anima files and write two TOML files: see README.md.
     下载真正的 Anima 模型并写好两个 TOML 文件：见 README.md。
  2. {python} tools/run_tests.py

Commands that ran / 运行过的命令:
{commands}"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/quickstart.py", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--no-install", action="store_true", help="use the current environment as it is"
    )
    args = parser.parse_args()
    started = time.monotonic()
    python = environment.prepare(["requirements.txt"], install=not args.no_install)
    environment.say_device(python)
    run([python, "tools/make_demo.py", "--base", "drawing"])
    run([*environment.accelerate(python), "launch", "anima_train_network.py",
         "--config_file", TRAIN_CONFIG, "--dataset_config", DATASET_CONFIG])  # fmt: skip
    summary = check_result(
        OUTPUT / f"{NAME}.safetensors", OUTPUT / f"{NAME}-step{STEPS:08}.safetensors"
    )
    print(closing_words(summary, time.monotonic() - started))
    return 0


if __name__ == "__main__":
    sys.exit(environment.main_guarded(main))
