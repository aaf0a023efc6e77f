"""ComfyUI's checkpoints of 8 bits, written by its rules, apart from the project's own code."""

import json

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny import golden

DIT = golden("anima_tiny_dit.safetensors")
H4 = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2.0
H16 = torch.kron(H4, H4)
FP8 = {"format": "float8_e4m3fn"}


def scaled(weight, dtype, per_row=False):
    """Codes and scale by the largest value of the matrix or of each row."""
    largest = weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max()
    if dtype == torch.int8:
        scale = largest / 127
        return (weight / scale).round().clamp(-128, 127).to(dtype), scale
    scale = largest / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


def turned(weight, matrix=H16):
    """Every group of columns times a matrix."""
    groups = weight.unflatten(1, (-1, len(matrix)))
    return (groups @ matrix).flatten(1)


def as_bytes(mark):
    return torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)


def old_fp8(layer, weight):
    codes, scale = scaled(weight, torch.float8_e4m3fn)
    more = {f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.ones(())}
    return {f"{layer}.weight": codes, **more}, codes.float() * scale


def marked(dtype, mark, per_row=False, rotated=False, **more):
    def write(layer, weight):
        codes, scale = scaled(turned(weight) if rotated else weight, dtype, per_row)
        entries = {f"{layer}.weight": codes, f"{layer}.weight_scale": scale, **{
            f"{layer}.{name}": value for name, value in more.items()
        }}  # fmt: skip
        if mark:
            entries[f"{layer}.comfy_quant"] = as_bytes(mark)
        dense = codes.float() * scale
        return entries, turned(dense) if rotated else dense

    return write


def cast(layer, weight):
    codes = weight.to(torch.float8_e4m3fn)
    return {f"{layer}.weight": codes}, codes.float()


INT8 = {"format": "int8_tensorwise"}
ROTATED = {**INT8, "convrot": True, "convrot_groupsize": 16, "per_row": True}
FORMS = {
    "scaled_fp8": old_fp8,
    "fp8": marked(torch.float8_e4m3fn, FP8, input_scale=torch.ones(())),
    "fp8 rows": marked(torch.float8_e4m3fn, {**FP8, "full_precision_matrix_mult": True}, True),
    "fp8 e5m2": marked(torch.float8_e5m2, {"format": "float8_e5m2"}),
    "fp8 cast": cast,
    "int8": marked(torch.int8, INT8),
    "int8 rows": marked(torch.int8, INT8, per_row=True),
    "int8 rotated": marked(torch.int8, ROTATED, per_row=True, rotated=True),
}

def in_blocks(key):
    return key.endswith("_proj.weight") or ".mlp." in key and key.endswith(".weight")


def written(folder, write, *, source=DIT, chosen=in_blocks, metadata=None, **more):
    """A file with some matrices written in 8 bits, and one in float32 of what they stand for."""
    tensors, dense = {}, {}
    for key, weight in load_file(source).items():
        dense[key] = weight
        entries = {key: weight}
        if chosen(key) and weight.dim() == 2:
            entries, dense[key] = write(key.removesuffix(".weight"), weight)
        tensors |= entries
    files = folder / "stored.safetensors", folder / "dense.safetensors"
    save_file(
        {key: value.clone() for key, value in {**tensors, **more}.items()}, files[0], metadata
    )
    save_file({key: value.clone() for key, value in dense.items()}, files[1])
    return files
