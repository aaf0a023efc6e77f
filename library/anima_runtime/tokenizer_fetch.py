"""Tokenizers that are missing: where they come from, and how they get to their folder whole.

Hugging Face first, ModelScope second. Files arrive in a temporary folder beside their place, are
completed and tried out there as for training, and only then moved.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from library.anima_runtime import tokenizer_assets as assets
from library.anima_runtime.tokenizer_assets import T5
from library.errors import ModelFileError, OutputError, Problem, UserError
from library.system.files import remove_file, remove_folder, replace_file
from library.system.network import CONNECT_TIMEOUT, why_unreachable
from library.system.system_errors import output_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FILES_ASKED_FIRST = {
    "qwen": ("vocab.json", "merges.txt", "tokenizer_config.json"),
    "t5": ("spiece.model", "tokenizer.json", "config.json", "tokenizer_config.json",
           "special_tokens_map.json"),
}  # fmt: skip
FILES_ASKED_SECOND = {"qwen": ("tokenizer.json",), "t5": ()}
"""Fetched when FILES_ASKED_FIRST do not make a tokenizer: large, or rare."""
LOADERS = {"qwen": assets.load_qwen_tokenizer, "t5": assets.load_t5_tokenizer}
HUBS = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
QWEN_ON_MODELSCOPE = "Qwen/Qwen3-0.6B-Base"
DOWNLOAD = "library.anima_runtime.hub_download"  # the module that fetches, run as a process


@dataclass(frozen=True)
class Repository:
    """A repository. folders: in it, tried in order; endpoint: of the hub, None for the usual one."""

    hub: str
    repo: str
    revision: str | None = None
    folders: tuple[str, ...] = ("",)
    endpoint: str | None = None

    def __str__(self) -> str:
        return f"{HUBS[self.hub]} {self.repo}"


class FetchOptions(Protocol):
    """What is read of the family's options, which are never set again."""

    @property
    def qwen_tokenizer_repo_id(self) -> str: ...
    @property
    def t5_tokenizer_repo_id(self) -> str: ...
    @property
    def t5_tokenizer_subfolder(self) -> str: ...
    @property
    def t5_tokenizer_modelscope_fallback(self) -> bool: ...
    @property
    def t5_tokenizer_modelscope_repo_id(self) -> str: ...
    @property
    def t5_tokenizer_modelscope_revision(self) -> str: ...
    @property
    def t5_tokenizer_modelscope_subfolder(self) -> str: ...


def sources_of(kind: str, options: FetchOptions) -> list[Repository]:
    """Where a tokenizer is looked for, in this order. Raises ModelFileError."""
    if kind == "qwen":
        first = parse_repository(options.qwen_tokenizer_repo_id, "--qwen_tokenizer_repo_id")
        second = Repository("modelscope", QWEN_ON_MODELSCOPE, "master")
    else:
        subfolder = options.t5_tokenizer_subfolder
        first = parse_repository(
            options.t5_tokenizer_repo_id, "--t5_tokenizer_repo_id", subfolder=subfolder
        )
        second = parse_repository(
            options.t5_tokenizer_modelscope_repo_id, "--t5_tokenizer_modelscope_repo_id",
            hub="modelscope", subfolder=options.t5_tokenizer_modelscope_subfolder,
        )  # fmt: skip
        revision = second.revision or options.t5_tokenizer_modelscope_revision
        second = replace(second, revision=revision)
    wanted = first.hub == "huggingface" and options.t5_tokenizer_modelscope_fallback
    return [first, second] if wanted else [first]


def can_be_fetched(kind: str, folder: Path) -> bool:
    """Whether files are missing in what is, or may become, a folder; not one of the other tokenizer."""
    is_file = os.path.isfile(folder) or folder.suffix in (".json", ".model")
    other = assets.KINDS["t5" if kind == "qwen" else "qwen"]
    if is_file or not assets.missing_files(other, folder):
        return False
    return bool(assets.missing_files(assets.KINDS[kind], folder))


def parse_repository(text: str, flag: str, *, hub: str = "huggingface", subfolder: str = "") -> Repository:
    """A repository id or an address of either hub. subfolder: tried first where the text names none.

    Raises ModelFileError for anything else.
    """
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text):
        return Repository(hub, text, folders=with_root(subfolder))
    url = urlsplit(text)
    host = url.hostname or ""
    parts = [unquote(part) for part in url.path.split("/") if part]
    try:
        if url.scheme in ("http", "https"):
            if re.fullmatch(r"(www\.)?modelscope\.(cn|ai)", host):
                return _modelscope_repository(url.query, parts, host, subfolder)
            if host in ("huggingface.co", "hf.co", "hf-mirror.com"):
                return _huggingface_repository(parts, subfolder)
    except (IndexError, ValueError):
        pass
    expected = "org/name, https://huggingface.co/org/name or https://modelscope.cn/models/org/name"
    raise ModelFileError(
        Problem(f"is no address of a repository. Expected {expected}.", f"{flag} {text}")
    )


def with_root(folder: str) -> tuple[str, ...]:
    folder = folder.strip("/")
    return (folder, "") if folder else ("",)


def _folder_of(parts: Sequence[str], is_file: bool) -> str:
    return "/".join(parts[:-1] if is_file else parts)


def _huggingface_repository(parts: list[str], subfolder: str) -> Repository:
    """https://huggingface.co/org/name[/tree|/blob|/resolve/revision/path]"""
    repo, rest = "/".join((parts[0], parts[1])), parts[2:]
    if not rest:
        return Repository("huggingface", repo, folders=with_root(subfolder))
    if rest[0] not in ("tree", "blob", "resolve"):
        raise ValueError(rest[0])
    folder = _folder_of(rest[2:], rest[0] != "tree")
    return Repository("huggingface", repo, rest[1], with_root(folder or subfolder))


def _modelscope_repository(query: str, parts: list[str], host: str, subfolder: str) -> Repository:
    """https://modelscope.cn/models/org/name[/files|/tree|/resolve|/file/view/revision/path], and
    https://modelscope.cn/api/v1/models/org/name/repo?Revision=...&FilePath=..."""
    parts = parts[parts.index("models") + 1 :]
    repo, rest = "/".join((parts[0], parts[1])), parts[2:]
    asked = {name.lower(): values[0] for name, values in parse_qs(query).items()}
    revision, folder = asked.get("revision"), ""
    if "filepath" in asked:
        folder = _folder_of(asked["filepath"].split("/"), "." in asked["filepath"])
    elif rest[:2] == ["file", "view"]:
        revision, folder = rest[2], _folder_of("/".join(rest[3:]).split("/"), True)
    elif rest and rest[0] in ("tree", "resolve"):
        revision, folder = rest[1], _folder_of(rest[2:], rest[0] == "resolve")
    elif rest not in ([], ["files"], ["summary"], ["repo"]):
        raise ValueError(rest)
    endpoint = "https://www.modelscope.ai" if host.endswith(".ai") else None
    return Repository("modelscope", repo, revision, with_root(folder or subfolder), endpoint)


def fetch(
    kind: str, folder: Path, sources: Sequence[Repository], *, table_rows: int, seconds: float
) -> None:
    """Bring the tokenizer `kind` into `folder`, from the first source that has a right one.

    table_rows: of the embedding table that reads its ids. seconds: limit for all sources together.
    Raises ModelFileError with the cause of every source and the commands to do it by hand.
    """
    facts = assets.KINDS[kind]
    problems = []
    end = time.monotonic() + seconds
    for left, source in zip(range(len(sources), 0, -1), sources):
        share = max(1.0, (end - time.monotonic()) / left)
        logger.info("%s tokenizer: missing in %s, fetching from %s", facts.name, folder, source)
        try:
            _fetch_from(source, kind, folder, table_rows, share)
        except OutputError:
            raise
        except UserError as error:
            cause = " ".join(str(problem.message) for problem in error.problems)
            logger.warning("%s: %s", source, cause)
            problems.append(f"{source}: {cause}")
            continue
        logger.info("%s tokenizer: now in %s", facts.name, folder)
        return
    causes = "\n".join(f"  {problem}" for problem in problems)
    raise ModelFileError(
        f"the {facts.name} tokenizer is missing in {folder} and could not be fetched:\n{causes}\n"
        f"Get it by hand, with one of\n{assets.commands(facts, folder)}\n"
        f"or name its folder with {facts.flag}. A slow line: raise --download_timeout ({seconds:g} s)."
    )


def _fetch_from(source: Repository, kind: str, folder: Path, table_rows: int, seconds: float) -> None:
    """All of it from one source: fetch, complete, try out, move."""
    facts = assets.KINDS[kind]
    if reason := why_unreachable(endpoint(source)):
        raise ModelFileError(reason)
    with output_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        end = time.monotonic() + seconds
        download(source, FILES_ASKED_FIRST[kind], work, seconds)
        if assets.missing_files(facts, work) and FILES_ASKED_SECOND[kind]:
            download(source, FILES_ASKED_SECOND[kind], work, max(1.0, end - time.monotonic()))
        if lacking := assets.missing_files(facts, work):
            raise ModelFileError(f"there is no such repository, or it has no {lacking}.")
        _refuse_pages(work)
        tokenizer = LOADERS[kind](work)
        assets.check_tokenizer(kind, tokenizer, table_rows)
        with output_errors(folder):
            if facts is T5:
                complete_t5(work, tokenizer, table_rows)
            move_into(work, folder)
    except UserError as error:
        raise type(error)([_without(problem, work) for problem in error.problems]) from error
    finally:
        remove_folder(work)


def _without(problem: Problem, work: Path) -> Problem:
    """The problem's own words alone: the temporary folder is gone when they are read."""
    message = problem.message.split(" Give the right one with")[0].split(" To get the files again")[
        0
    ]
    return replace(problem, message=message.replace(f" in {work}", "").strip())


def endpoint(source: Repository) -> str:
    """The hub's address, as its library reads it from the environment."""
    if source.hub == "huggingface":
        return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    usual = source.endpoint or (domain if "://" in domain else f"https://{domain}")
    return os.environ.get("MODELSCOPE_ENDPOINT") or usual


def download(source: Repository, files: Sequence[str], target: Path, seconds: float) -> None:
    """Run the download in a process of its own; see hub_download. Raises ModelFileError."""
    request = target / ".request.json"
    wanted = {"hub": source.hub, "repo": source.repo, "revision": source.revision,
              "folders": source.folders, "files": list(files), "target": str(target)}  # fmt: skip
    with output_errors(request):
        request.write_text(json.dumps(wanted), encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", DOWNLOAD, str(request)]
    try:
        done = subprocess.run(
            command, cwd=root, env=_environment(source), timeout=seconds, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        last = last_words(error.stderr)
        raise ModelFileError(f"not done within {seconds:.0f} s. {last}".strip()) from None
    finally:
        remove_file(request)
    if done.returncode:
        raise ModelFileError(last_words(done.stderr) or f"ended with code {done.returncode}.")


def last_words(output: bytes | None) -> str:
    """What a library said last, such as why it tries again."""
    return " ".join((output or b"").decode(errors="replace").strip().splitlines()[-2:])[-300:]


def _environment(source: Repository) -> dict[str, str]:
    """The user's, with short waits and no progress bars where they say nothing of that."""
    own = {
        "HF_HUB_ETAG_TIMEOUT": str(CONNECT_TIMEOUT),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    if source.endpoint:
        own["MODELSCOPE_ENDPOINT"] = source.endpoint
    return {**own, **os.environ, "PYTHONIOENCODING": "utf-8"}  # as last_words reads it


def _refuse_pages(folder: Path) -> None:
    """A page to sign in at is not a file, whatever its name says."""
    for file in folder.iterdir():
        if file.is_file() and file.read_bytes()[:64].lstrip()[:1] == b"<":
            raise ModelFileError(f"a web page came instead of {file.name}.")


def complete_t5(folder: Path, tokenizer: PreTrainedTokenizerBase, table_rows: int) -> None:
    """Make those of the usual three files that the repository does not have."""
    from transformers import PreTrainedTokenizerFast

    assert isinstance(tokenizer, PreTrainedTokenizerFast), "T5Tokenizer is one"
    if not (folder / "tokenizer.json").exists():
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    if not (folder / "config.json").exists():
        config = {"model_type": "t5", "vocab_size": table_rows}
        (folder / "config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def move_into(work: Path, folder: Path) -> None:
    """The files of `work`, to `folder`, each whole; what lies there under other names stays."""
    folder.mkdir(exist_ok=True)
    for file in sorted(work.iterdir()):
        if file.is_file():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
            replace_file(file, folder / file.name)
