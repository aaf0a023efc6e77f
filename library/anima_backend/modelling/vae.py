"""The Qwen-Image VAE for single pictures: a thin wrapper around diffusers' AutoencoderKLQwenImage.

4-D in and out. For one frame the causal 3-D convolutions see two frames of zeros and the picture, so
only the last tap in time counts: they are replaced by 2-D ones with that tap (the same latents to
rounding, in less time and memory).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

DOWNSCALE = 8
CHANNELS = 16
HALO = 13  # rows of latents: how far from a pixel the decoder's upper part looks, 12.25


class SingleFrameConv(nn.Module):
    """A causal 3-D convolution at its first frame, (B, C, 1, H, W) -> (B, C', 1, H', W')."""

    def __init__(self, conv: QwenImageCausalConv3d) -> None:
        super().__init__()
        left, right, top, bottom, *_ = conv._padding
        assert left == right and top == bottom, "the padding of a picture is symmetric"
        self.weight = nn.Parameter(conv.weight.detach()[:, :, -1].contiguous(), requires_grad=False)
        self.bias = conv.bias
        self.stride, self.padding = conv.stride[1:], (int(top), int(left))

    def forward(self, x: Tensor, cache_x: None = None) -> Tensor:
        assert cache_x is None and x.shape[2] == 1, "one frame only"
        return F.conv2d(x[:, :, 0], self.weight, self.bias, self.stride, self.padding)[:, :, None]


class QwenImageVAE(nn.Module):
    """Pixels (B, 3, 8H, 8W) in [-1, 1] <-> normalised latents (B, 16, H, W)."""

    def __init__(self, network: Any, single_frame: bool = True) -> None:
        """network: a loaded AutoencoderKLQwenImage; single_frame False keeps its 3-D convolutions."""
        super().__init__()
        self.network = network
        shape = (1, CHANNELS, 1, 1)
        self.mean = torch.tensor(network.config.latents_mean).view(shape)
        self.std = torch.tensor(network.config.latents_std).view(shape)
        if single_frame:
            fold_convolutions(network)

    @property
    def dtype(self) -> torch.dtype:
        return self.network.quant_conv.bias.dtype

    @property
    def device(self) -> torch.device:
        return self.network.quant_conv.bias.device

    def encode(self, pixels: Tensor) -> Tensor:
        """The posterior's mean, normalised, float32. Height and width must be multiples of 8."""
        height, width = pixels.shape[-2:]
        if height % DOWNSCALE or width % DOWNSCALE:
            raise ValueError(f"pixels are {width}x{height}, expected multiples of {DOWNSCALE}")
        moments = self.network.quant_conv(self.network.encoder(pixels.to(self.dtype)[:, :, None]))
        mean = moments[:, :CHANNELS, 0].float()
        return (mean - self.mean.to(mean)) / self.std.to(mean)

    def decode(self, latents: Tensor, rows: int | None = None) -> Tensor:
        """Pixels, float32, not clamped (diffusers clamps, ComfyUI does not).

        rows: of latents whose pixels are made at a time, one picture after the other: saves memory. The
        same numbers but for rounding: what sees the whole picture, the attention at the latents' own
        size, sees it; above it there are only 3x3 convolutions, and each band has the rows that these
        look at.
        """
        latents = latents.float() * self.std.to(latents.device) + self.mean.to(latents.device)
        z = self.network.post_quant_conv(latents.to(self.dtype)[:, :, None])
        if rows is None:
            return self.network.decoder(z)[:, :, 0].float()
        return torch.cat([self.decode_in_bands(picture, rows) for picture in z.split(1)])

    def decode_in_bands(self, z: Tensor, rows: int) -> Tensor:
        """(1, 16, 1, H, W) -> (1, 3, 8H, 8W), float32, `rows` rows of latents after the other."""
        decoder, height = self.network.decoder, z.shape[-2]
        features = decoder.mid_block(decoder.conv_in(z))
        bands = []
        for top in range(0, height, rows):
            above = min(HALO, top)
            seen = features[..., top - above : top + rows + HALO, :]
            for block in decoder.up_blocks:
                seen = block(seen)
            band = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(seen)))
            kept = min(rows, height - top)
            bands.append(band[:, :, 0].float().narrow(2, above * DOWNSCALE, kept * DOWNSCALE))
        return torch.cat(bands, dim=2)


def fold_convolutions(network: nn.Module) -> None:
    """Replace every causal 3-D convolution that a single picture passes through."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    for name, module in list(network.named_modules()):
        if isinstance(module, QwenImageCausalConv3d) and not name.endswith("time_conv"):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, SingleFrameConv(module))
