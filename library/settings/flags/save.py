"""The flags of the files that a run writes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from library.errors import Problem
from library.settings.effects import loses_to, needs
from library.settings.flags.shared import fits_epochs, fits_steps
from library.settings.options import at_least, flag
from library.system.file_names import name_problem

REPOSITORY_TYPES = ("model", "dataset", "space")
REPOSITORY_NAME = r"\w[\w.-]*/\w[\w.-]*"
REPOSITORY = re.compile(
    rf"(?P<repo>{REPOSITORY_NAME})/(?P<path>[^:]+)"
    rf"(:(?P<revision>[^:]*))?(:(?P<type>{'|'.join(REPOSITORY_TYPES)}))?"
)
"""A place in a repository, as sd-scripts writes it: user/name/path[:revision[:type]]."""
EPOCH_FILES = needs(
    lambda o: o.save_every_n_epochs or o.save_n_epoch_ratio, "save_every_n_epochs is not set"
)
STEP_FILES = needs(lambda o: o.save_every_n_steps, "save_every_n_steps is not set")
UPLOADED = needs(lambda o: o.huggingface_repo_id, "huggingface_repo_id is not set")


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """Files"""

    output_dir: str | None = flag(None, "folder of the trained files", path=True)
    output_name: str | None = flag(None, "their name")
    save_precision: str | None = flag(
        None, "precision of the file", choices=("float", "fp16", "bf16")
    )
    save_every_n_epochs: int | None = flag(
        None,
        "write a file every n epochs",
        check=at_least(1),
        off=(0,),
        idle=(
            loses_to(lambda o: o.save_n_epoch_ratio, "save_n_epoch_ratio decides"),
            fits_epochs("save_every_n_epochs"),
        ),
    )
    save_every_n_steps: int | None = flag(
        None,
        "write a file every n steps",
        check=at_least(1),
        off=(0,),
        idle=(fits_steps("save_every_n_steps"),),
    )
    save_n_epoch_ratio: int | None = flag(
        None, "write at least n files", check=at_least(1), off=(0,)
    )
    save_last_n_epochs: int | None = flag(
        None, "keep the last n epoch files", check=at_least(1), off=(0,), idle=(EPOCH_FILES,)
    )
    save_last_n_steps: int | None = flag(
        None, "keep files of the last n steps", check=at_least(0), idle=(STEP_FILES,)
    )
    save_model_as: str = flag(
        "safetensors", "kind of file", choices=("safetensors",), refuses=dict.fromkeys(
            ("ckpt", "pt"), "only safetensors is written: such files can run code when they are opened"
        ),
    )  # fmt: skip
    export_format: str = flag(
        "comfy",
        "comfy: all that was trained; universal: a LoRA without alpha and norms, which diffusers reads "
        "too; both: the second beside it as <name>-universal",
        choices=("comfy", "universal", "both"),
    )
    export_rank: int | None = flag(
        None,
        "rank of the universal LoRA that stands in place of a LoKr; 64 if not given",
        check=at_least(1),
        idle=(needs(lambda o: o.export_format != "comfy", "export_format is comfy"),),
    )
    verify_export: bool = flag(
        True, "read each file again and compare it with the adapters in memory"
    )
    no_metadata: bool = flag(False, "write only modelspec.* and the metadata other tools need")
    huggingface_repo_id: str | None = flag(
        None, "repository (user/name) to which each file is uploaded when it is saved; made if missing"
    )
    huggingface_repo_type: str | None = flag(
        None, "its type; model if not given", choices=REPOSITORY_TYPES, idle=(UPLOADED,)
    )
    huggingface_path_in_repo: str | None = flag(
        None, "folder in it; its root if not given", idle=(UPLOADED,)
    )
    huggingface_token: str | None = flag(
        None,
        "token for uploads and for resume_from_huggingface; the saved login if not given; never shown or kept",
        idle=(
            needs(
                lambda o: o.huggingface_repo_id or o.resume_from_huggingface,
                "neither huggingface_repo_id nor resume_from_huggingface is set",
            ),
        ),
    )
    huggingface_repo_visibility: str | None = flag(
        None,
        "of a repository that is made: private if not given",
        choices=("public", "private"),
        idle=(UPLOADED,),
    )
    async_upload: bool = flag(
        False, "upload beside the training, which does not wait for it", idle=(UPLOADED,)
    )

    def problems(self) -> list[Problem]:
        found = []
        if self.huggingface_repo_id and not re.fullmatch(REPOSITORY_NAME, self.huggingface_repo_id):
            message = "expected user/name, with letters, digits, dots and hyphens."
            found.append(Problem(message, f"huggingface_repo_id = {self.huggingface_repo_id}"))
        if not self.output_dir:
            found.append(Problem("is needed: the folder for the trained files.", "output_dir"))
        if self.output_name and {"/", "\\"} & set(self.output_name):
            message = "expected a name without folders; use output_dir for the folder."
            found.append(Problem(message, f"output_name = {self.output_name}"))
        elif self.output_name and (wrong := name_problem(self.output_name)):
            found.append(Problem(wrong, f"output_name = {self.output_name[:60]}"))
        return found
