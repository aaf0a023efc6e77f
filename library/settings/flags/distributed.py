"""The flags of several processes."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.effects import needs
from library.settings.options import at_least, flag

OF_DEEPSPEED = "it is an option of deepspeed, which is refused here"
OFFLOAD = ("cpu", "nvme", "None")
SEVERAL = needs(lambda o: o.processes > 1, "one process trains")


@dataclass(frozen=True, kw_only=True)
class DistributedOptions:
    """Several processes"""

    ddp_timeout: int | None = flag(
        None, "minutes to wait for other processes", check=at_least(1), off=(0,), idle=(SEVERAL,)
    )
    ddp_gradient_as_bucket_view: bool = flag(
        False, "DDP: gradients as views of buckets", idle=(SEVERAL,)
    )
    ddp_static_graph: bool = flag(False, "DDP: the graph never changes", idle=(SEVERAL,))
    deepspeed: bool = flag(
        False,
        "train by DeepSpeed's engine, which divides what is trained among processes (ZeRO)",
        refused="every process holds all that trains here. vram_target chooses what saves memory, for "
        "adapters and for a model that trains itself",
    )
    zero_stage: int = flag(
        2, "what ZeRO divides: optimizer (1), gradients too (2), weights too (3)",
        choices=(0, 1, 2, 3), ignored=OF_DEEPSPEED,
    )  # fmt: skip
    offload_optimizer_device: str | None = flag(
        None, "where ZeRO keeps the optimizer's state", choices=OFFLOAD, ignored=OF_DEEPSPEED
    )
    offload_optimizer_nvme_path: str | None = flag(
        None, "folder on an NVMe disk for that", ignored=OF_DEEPSPEED
    )
    offload_param_device: str | None = flag(
        None, "where ZeRO 3 keeps the weights", choices=OFFLOAD, ignored=OF_DEEPSPEED
    )
    offload_param_nvme_path: str | None = flag(
        None, "folder on an NVMe disk for that", ignored=OF_DEEPSPEED
    )
    zero3_init_flag: bool = flag(
        False, "divide the weights while the model is made, for ZeRO 3", ignored=OF_DEEPSPEED
    )
    zero3_save_16bit_model: bool = flag(
        False, "gather the weights of ZeRO 3 for saving, in 16 bits", ignored=OF_DEEPSPEED
    )
    fp16_master_weights_and_gradients: bool = flag(
        False, "ZeRO's own copies of weights and gradients in fp16", ignored=OF_DEEPSPEED
    )
