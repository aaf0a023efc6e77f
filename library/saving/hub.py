"""A repository on Hugging Face: whether it can be written to, and files that go there or come from it.

Their library does the sending: address (HF_ENDPOINT), saved logins, proxies, and trying again. A token
is shown nowhere: errors lose it before they are told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import ConfigError, Problem, ResumeError
from library.settings.flags.save import REPOSITORY, REPOSITORY_TYPES
from library.system.network import why_unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from library.settings.flags.resume import ResumeOptions
    from library.settings.flags.save import SaveOptions

LONGEST_REASON = 300  # letters
TOKENS = re.compile(r"\bhf_\w+")
NO_TOKEN = "Give a token that may write (huggingface_token, or log in with: hf auth login)."


@dataclass(frozen=True)
class Repository:
    """Where files go.

    id:      "user/name"
    kind:    model, dataset or space
    folder:  in it; "" for its root
    token:   None: that of the saved login, or of HF_TOKEN
    private: whether it is made so; None: it is, and one that is there may be either
    """

    id: str
    kind: str = "model"
    folder: str = ""
    token: str | None = field(default=None, repr=False)
    private: bool | None = None

    @staticmethod
    def of(options: SaveOptions) -> Repository | None:
        """The repository that the options name, if they name one."""
        if not options.huggingface_repo_id:
            return None
        visibility = options.huggingface_repo_visibility
        return Repository(
            options.huggingface_repo_id,
            options.huggingface_repo_type or "model",
            (options.huggingface_path_in_repo or "").strip("/"),
            options.huggingface_token or None,
            None if visibility is None else visibility == "private",
        )

    def __str__(self) -> str:
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def place_of(self, name: str) -> str:
        """Of a file or a folder with this name, in the repository."""
        return f"{self.folder}/{name}" if self.folder else name

    def api(self) -> HfApi:
        """What asks the hub."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # the run has its own
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=self.token)

    def problems(self) -> list[Problem]:
        """What keeps a run from writing to it. One that is not there is no problem if it can be made."""
        where = f"huggingface_repo_id = {self.id}"
        api = self.api()
        if reason := why_unreachable(api.endpoint):
            return [Problem(f"{reason} Check the line, or leave out the upload.", where)]
        try:
            api.auth_check(self.id, repo_type=self.kind, write=True)
        except Exception as error:  # noqa: BLE001  whatever it is, nothing could be uploaded
            if status_of(error) == 404:
                return self.creation_problems(api, where)
            return [Problem(self.refusal(error), where)]
        if self.private and not api.repo_info(self.id, repo_type=self.kind).private:
            message = "is public, and huggingface_repo_visibility is private. Make it private on its "
            return [Problem(f"{message}page of settings, or name another one.", where)]
        return []

    def creation_problems(self, api: HfApi, where: str) -> list[Problem]:
        """Why it cannot be made, where it is not there."""
        owner = self.id.split("/")[0]
        try:
            known = api.whoami()
        except Exception as error:  # noqa: BLE001  as above
            return [Problem(f"there is no such repository, and {self.refusal(error)}", where)]
        names = [known.get("name"), *(each.get("name") for each in known.get("orgs", []))]
        if owner in names:
            return []
        mine = ", ".join(str(name) for name in names)
        message = f"there is no such repository, and this token makes some under {mine} only."
        return [Problem(f"{message} Correct the id, or use a token of {owner}.", where)]

    def refusal(self, error: Exception) -> str:
        """Why the hub did not do what was asked, and what to do."""
        status = status_of(error)
        if status == 401:
            return f"the token is missing or not valid. {NO_TOKEN}"
        if status == 403:
            return f"the token may not write there. {NO_TOKEN}"
        return f"the hub refuses: {reason_of(error, self.token)}"

    def make(self) -> bool:
        """Make it where it is not there; returns whether it was made. Raises ConfigError."""
        api = self.api()
        try:
            if api.repo_exists(self.id, repo_type=self.kind):
                return False
            api.create_repo(
                self.id, repo_type=self.kind, private=self.private is not False, exist_ok=True,
                space_sdk="static" if self.kind == "space" else None,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  as above
            where = f"huggingface_repo_id = {self.id}"
            message = f"the repository cannot be made: {self.refusal(error)}"
            raise ConfigError([Problem(message, where)]) from None
        return True

    def commit(self, files: Mapping[str, Path], message: str) -> None:
        """Send files, by their place in the repository, as one commit: all of them, or none.

        Raises whatever keeps it from being done.
        """
        from huggingface_hub import CommitOperationAdd

        api = self.api()
        if reason := why_unreachable(api.endpoint):
            raise ConnectionError(reason)
        added = [CommitOperationAdd(place, str(path)) for place, path in files.items()]
        api.create_commit(self.id, added, commit_message=message, repo_type=self.kind)


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error."""
    return getattr(getattr(error, "response", None), "status_code", None)


def reason_of(error: BaseException, token: str | None) -> str:
    """What an error says, in one line, without a token."""
    text = re.sub(r"For more information check: \S+", "", str(error))
    text = " ".join(text.split()) or type(error).__name__
    text = TOKENS.sub("***", text.replace(token, "***") if token else text)
    return text[:LONGEST_REASON]


def state_from_hub(options: ResumeOptions, token: str | None) -> str | None:
    """The folder of the state to go on from, fetched first where it is on the hub. Raises ResumeError.

    It lies in the hub's own cache, so that the next start fetches nothing.
    """
    if not (options.resume_from_huggingface and options.resume):
        return options.resume
    from huggingface_hub import constants, snapshot_download

    found = REPOSITORY.fullmatch(options.resume)
    assert found, "ResumeOptions checks it"
    repo, path = found["repo"], found["path"].strip("/")
    kind = found["type"] or "model"
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    reason = why_unreachable(endpoint)
    try:
        if reason:
            raise ConnectionError(reason)
        home = snapshot_download(
            repo, repo_type=kind, revision=found["revision"] or None, token=token or None,
            allow_patterns=f"{path}/*", endpoint=endpoint, cache_dir=os.environ.get("HF_HUB_CACHE"),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  whatever it is, there is no state
        advice = "Check repository, revision and token."
        message = f"the state cannot be fetched: {reason_of(error, token)} {advice}"
        raise ResumeError(message, source=f"resume = {options.resume}") from None
    folder = Path(home, path)
    if not folder.is_dir():
        message = f"the repository {repo} has no folder {path}. Write user/name/folder of the state"
        known = ", ".join(REPOSITORY_TYPES)
        message += f", then :revision and :type ({known}) where they are not main and model."
        raise ResumeError(message, source=f"resume = {options.resume}")
    return str(folder)
