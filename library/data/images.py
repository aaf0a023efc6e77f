"""Picture files to pixel tensors: decode, orient, alpha, resize, crop, flip.

One rule of orientation for header and pixels: the picture as displayed, after EXIF. (sd-scripts
ignores EXIF; caches made there of rotated photos would not fit.)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from library.data.buckets import CropPlan, Size
from library.data.data_types import ImageInfo
from library.data.picture_folders import has_plugin
from library.errors import DatasetError

# dataset_keys.INTERPOLATIONS. Pillow's filters widen with the scale, so BOX is "area" when shrinking, and
# bilinear and bicubic are the antialiased kinds.
KERNELS = {
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "box": Image.Resampling.BOX,
}
TURNED = {5, 6, 7, 8}  # EXIF orientations that swap width and height
ORIENTATION = 0x0112
PNG_EXIF_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "AVIF", "GIF", "TIFF", "TGA", "PPM", "JPEG2000"),
    *("JXL", "HEIF"),
)
"""What is opened, whatever the file is called: nothing that starts another program, as EPS would."""


class UnreadableImage(DatasetError):
    """A picture file that cannot be used."""


class FileEnd(Enum):
    """What the end of a picture file looks like."""

    WHOLE = auto()
    SUSPICIOUS = auto()  # perhaps cut short
    LATE_EXIF = auto()  # a PNG with EXIF behind its pixels


@dataclass(frozen=True)
class PictureHeader:
    """size: (width, height) as displayed; several: frames or pages, of which the first is used."""

    size: Size
    several: bool = False


def read_picture_header(path: str | Path) -> PictureHeader:
    """What is known without the pixels; a picture cut short is found too.

    Only a picture whose end looks wrong is decoded, to be sure. Raises UnreadableImage.
    """
    with open_image(path) as image:
        # the further pictures in a camera's MPO are no frames
        several = image.format != "MPO" and getattr(image, "is_animated", False)
        return PictureHeader(_displayed_size(path, image), several)


def _displayed_size(path: str | Path, image: Image.Image) -> Size:
    end = read_end(path, image.format)
    if end is FileEnd.SUSPICIOUS:
        return load_image(path).size
    # Pillow's own getexif decodes a whole PNG in search of EXIF behind the pixels
    exif = Image.Image.getexif(image) if end is FileEnd.WHOLE else image.getexif()
    turned = exif.get(ORIENTATION) in TURNED
    return (image.height, image.width) if turned else image.size


def load_image(path: str | Path) -> Image.Image:
    """The picture as displayed, RGB on white. Raises UnreadableImage, also when it is cut short."""
    return to_rgb(decode(path))


def decode(path: str | Path) -> Image.Image:
    """The picture as displayed, in its own mode. Raises UnreadableImage."""
    with open_image(path) as image:
        try:
            image.load()
            return ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImage(
                f"{path}: the picture is damaged ({error}). Replace it."
            ) from error


def open_image(path: str | Path) -> Image.Image:
    """Open a picture and read its header. Raises UnreadableImage saying what the file is."""
    accept_large_pictures()
    try:
        image = Image.open(path, formats=formats())  # refuses what has too many pixels
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{path}: {describe_foreign(path)}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{path}: {error}. Make it smaller.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableImage(f"{path}: cannot be read ({error}).") from error
    return image


@cache
def formats() -> tuple[str, ...]:
    """Of the formats that are read, those that this Pillow has, with the plugins that are there."""
    if has_plugin("pillow_jxl"):
        import pillow_jxl  # noqa: F401  registers itself
    if has_plugin("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def accept_large_pictures() -> None:
    """Silence Pillow's warning of pictures that are not too large here, for the whole process.

    Warnings cannot be silenced for a while: other threads open pictures, and filters are everyone's.
    """
    if not any(each[2] is Image.DecompressionBombWarning for each in warnings.filters):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def read_end(path: str | Path, kind: str | None) -> FileEnd:
    """What is known without decoding. kind: Pillow's name of the format"""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if kind == "PNG":
            return read_png_end(file)
        head = file.read(16)
        if kind == "JPEG":
            file.seek(-2, os.SEEK_END)
            return _whole_if(file.read() == b"\xff\xd9")
        if kind in ("WEBP", "BMP"):
            declared = 8 + _little(head[4:8]) if kind == "WEBP" else _little(head[2:6])
            return _whole_if(declared <= size)
        if kind == "GIF":
            file.seek(-1, os.SEEK_END)
            return _whole_if(file.read() == b";")
        if kind == "AVIF":
            return _whole_if(_boxes_end(file) <= size)
    return FileEnd.SUSPICIOUS


def _whole_if(fits: bool) -> FileEnd:
    return FileEnd.WHOLE if fits else FileEnd.SUSPICIOUS


def read_png_end(file: BinaryIO) -> FileEnd:
    """Walk a PNG's chunks without reading pixels."""
    file.seek(8)
    pixels_seen, verdict = False, FileEnd.WHOLE
    while len(header := file.read(8)) == 8:
        length, name = int.from_bytes(header[:4], "big"), header[4:]
        if name == b"IEND":
            return verdict
        pixels_seen |= name == b"IDAT"
        start = file.tell()
        carrier = name == b"eXIf" or file.read(32).startswith(PNG_EXIF_TEXTS)
        if pixels_seen and name != b"IDAT" and carrier:
            verdict = FileEnd.LATE_EXIF
        file.seek(start + length + 4)
    return FileEnd.SUSPICIOUS


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _boxes_end(file: BinaryIO) -> int:
    """Where the last top-level box of an ISO media file says that it ends."""
    end = 0
    while True:
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: to the end of the file
            return end
        end += length


def describe_foreign(path: str | Path) -> str:
    """What a file that is no readable picture seems to be, and what to do."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(64)
    if size == 0:
        return "the file is empty. Replace it or remove it."
    if not head.strip(b"\0"):
        return "the file holds only zeros, as after an interrupted copy. Replace it."
    if head.lstrip()[:1] in (b"<", b"{") or head.startswith(b"version https://git-lfs"):
        return "this is a text or web page, not a picture. Download it again."
    kind = Path(path).suffix.lower()
    return (
        f"not a picture that can be read as {kind}, or cut short. Replace it or convert it to png."
    )


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """RGB from any mode: 16-bit grey scaled, transparency laid on `background`."""
    if image.mode.startswith("I") or image.mode == "F":
        image = grey_to_8_bit(image)
    if is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether the picture has an alpha channel or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or more to 8; Pillow's own conversion clips it to white.

    Modes I;16* are 16-bit. Mode I comes from 16-bit files too, unless its values say otherwise;
    mode F is taken as [0, 1], or [0, 255] when it goes beyond.
    """
    values = np.asarray(image, dtype=np.float64)
    top = values.max(initial=0.0)
    if image.mode == "F":
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def resize(image: Image.Image, size: Size, interpolation: str | None = None) -> Image.Image:
    """Resize with the named kernel; when None, area to shrink and lanczos to enlarge."""
    if image.size == size:
        return image
    if interpolation is None:
        shrinks = image.width > size[0] or image.height > size[1]
        interpolation = "area" if shrinks else "lanczos"
    return image.resize(size, KERNELS[interpolation])


def load_picture(
    info: ImageInfo,
    plan: CropPlan,
    change: Callable[[Image.Image], Image.Image] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Pixels (3, H, W) float32 in [-1, 1], and the loss mask (H, W) in [0, 1] or None: all of it counts.

    The mask is the red channel of the picture's mask, or its own opacity where its subset says so.
    change: applied to the decoded picture. Raises UnreadableImage.
    """
    decoded = decode(info.path)
    image = to_rgb(decoded)
    if change is not None:
        image = change(image)
    mask = None
    if info.mask is not None:
        mask = load_mask(info.mask, image.size)
    elif info.subset.alpha_mask and is_transparent(decoded):
        mask = decoded.convert("RGBA").getchannel("A")
    kernel = info.subset.resize_interpolation
    pixels = image_to_tensor(crop(resize(image, plan.resized, kernel), plan))
    if mask is None:
        return pixels, None
    mask = crop(resize(mask, plan.resized, mask_kernel(mask.size, plan.resized)), plan)
    return pixels, torch.from_numpy(np.array(mask, dtype=np.uint8)).float().div_(255)


def load_mask(path: Path, size: Size) -> Image.Image:
    """The red channel; transparent parts count as black. Raises UnreadableImage if not of `size`."""
    mask = to_rgb(decode(path), background="black").getchannel("R")
    if mask.size != size:
        text = (
            f"{path}: the mask is {mask.width} x {mask.height}, its picture {size[0]} x {size[1]}."
        )
        raise UnreadableImage(f"{text} Make them the same size.")
    return mask


def mask_kernel(size: Size, wanted: Size) -> str:
    """Kernels that never leave the range of the values."""
    return "area" if size[0] > wanted[0] or size[1] > wanted[1] else "bilinear"


def crop(image: Image.Image, plan: CropPlan) -> Image.Image:
    left, top = plan.crop
    return image.crop((left, top, left + plan.bucket[0], top + plan.bucket[1]))


def image_to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1] from an RGB picture."""
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array.permute(2, 0, 1).to(torch.float32).div_(127.5).sub_(1.0).contiguous()
