"""Find, load and check the two tokenizers of Anima: Qwen3 (byte-level BPE) and T5 v1.1.

Notable: transformers' tokenizer classes make a toy tokenizer, without an error, of an empty or wrong
folder. So the files are checked first and the result is tried out; `check_tokenizer` then compares
it with the embedding table that will read its ids. Nothing is downloaded here.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.anima_runtime.model_settings import read_json
from library.errors import ModelFileError, as_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SMOKE_TEXT = "1girl, solo, smile"
UNLIMITED = int(1e30)  # what transformers writes for a tokenizer without a length limit


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """What is known about one of the two tokenizers.

    file_sets:   each one is enough: the names that must lie in the folder together
    single_files: names of files that are a whole tokenizer by themselves
    real_rows:   rows of the embedding table of the true-size model
    real_length: number of tokens of the real tokenizer, added ones included
    known_ids:   texts and the ids that the real tokenizer gives for them
    by_hand:     command lines that fetch the files into {folder}
    """

    name: str
    class_name: str
    file_sets: tuple[tuple[str, ...], ...]
    single_files: tuple[str, ...]
    special_ids: dict[str, int]
    real_rows: int
    real_length: int
    known_ids: dict[str, tuple[int, ...]]
    flag: str
    by_hand: tuple[str, ...]


QWEN = TokenizerKind(
    name="Qwen",
    class_name="Qwen2Tokenizer",
    file_sets=(("vocab.json", "merges.txt"), ("tokenizer.json",)),
    single_files=("tokenizer.json",),
    special_ids={"pad": 151643},
    real_rows=151936,
    real_length=151669,
    known_ids={
        "1girl": (16, 28552),
        "masterpiece, best quality, score_7": (13629, 22362, 11, 1850, 4271, 11, 5456, 62, 22),
        "<|endoftext|><|im_start|></think>": (151643, 151644, 151668),
    },
    flag="--qwen_tokenizer_dir",
    by_hand=(
        'hf download Qwen/Qwen3-0.6B-Base vocab.json merges.txt --local-dir "{folder}"',
        (
            "modelscope download --model Qwen/Qwen3-0.6B-Base vocab.json merges.txt"
            ' --local_dir "{folder}"'
        ),
    ),
)

T5 = TokenizerKind(
    name="T5",
    class_name="T5Tokenizer",
    file_sets=(("spiece.model",), ("tokenizer.json",)),
    single_files=("spiece.model", "tokenizer.json"),
    special_ids={"pad": 0, "eos": 1, "unk": 2},
    real_rows=32128,
    real_length=32100,
    known_ids={
        "1girl, solo": (209, 18722, 6, 6729, 1),
        "masterpiece, best quality": (20975, 6, 200, 463, 1),
        "</s><unk><extra_id_0>": (1, 2, 32099, 1),
    },
    flag="--t5_tokenizer_dir",
    by_hand=(
        'hf download google/t5-v1_1-base spiece.model config.json --local-dir "{folder}"',
        (
            "modelscope download --model nv-community/Cosmos-Predict2-2B-Text2Image"
            ' --include "tokenizer/*" --local_dir "{folder}"'
            "   (then move the files out of tokenizer/)"
        ),
    ),
)

KINDS = {"qwen": QWEN, "t5": T5}


@dataclass(frozen=True)
class TokenizerFolders:
    """Where the two tokenizers of a run are, or will be: folders, or single files."""

    qwen: Path
    t5: Path
OWN_FILES = {
    "vocab.json": "vocab_file", "spiece.model": "vocab_file", "merges.txt": "merges_file",
    "tokenizer.json": "tokenizer_file",
}  # fmt: skip

# What Qwen's vocab.json leaves to tokenizer_config.json; ids from 151643 on, in this order. A plain
# caption can spell them, and ComfyUI's tokenizer knows them all.
QWEN_BASE_LENGTH = 151643
QWEN_ADDED_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"),
    *("<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)


def find_t5_tokenizer_dir(given: str | Path | None, transformer_path: str | Path) -> Path:
    """The folder (or file) named by the user, else `t5_tokenizer` in the folder of the DiT."""
    if given:
        return Path(given)
    folder = Path(transformer_path).parent / "t5_tokenizer"
    logger.info("T5 tokenizer: --t5_tokenizer_dir is not given, using %s", folder)
    return folder


def find_qwen_tokenizer_dir(given: str | Path | None, qwen_path: str | Path) -> Path:
    """The folder (or file) named by the user, else the Qwen folder, else `qwen_tokenizer` beside
    the single Qwen file."""
    if given:
        return Path(given)
    qwen_path = Path(qwen_path)
    if os.path.isdir(qwen_path):
        return qwen_path
    folder = qwen_path.parent / "qwen_tokenizer"
    logger.info("Qwen tokenizer: --qwen_tokenizer_dir is not given, using %s", folder)
    return folder


def load_qwen_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The Qwen tokenizer of a folder (vocab.json + merges.txt, or tokenizer.json) or of a file."""
    tokenizer = _load(QWEN, Path(path))
    if len(tokenizer) >= QWEN_BASE_LENGTH:
        _add_qwen_tokens(tokenizer)
    return tokenizer


def load_t5_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The T5 tokenizer of a folder (spiece.model or tokenizer.json) or of one of these files."""
    return _load(T5, Path(path))


def obtain_files(kind: TokenizerKind, path: Path) -> Path:
    """`path`, once the files of a tokenizer are known to lie there; tokenizer_fetch brings missing ones."""
    missing = missing_files(kind, path)
    if missing:
        raise ModelFileError(_how_to_get(kind, path, missing))
    return path


def missing_files(kind: TokenizerKind, path: Path) -> str:
    """What lacks, in words ("spiece.model or tokenizer.json"); "" when nothing does."""
    if os.path.isfile(path):
        usable = path.name in kind.single_files and _has_content(path)
        return "" if usable else f"a folder, or the file {' or '.join(kind.single_files)}"
    lacking = [
        [name for name in files if not _has_content(path / name)] for files in kind.file_sets
    ]
    if not all(lacking):
        return ""
    return ", or ".join(" and ".join(names) for names in lacking)


def check_tokenizer(kind: str, tokenizer: PreTrainedTokenizerBase, table_rows: int) -> None:
    """Refuse a tokenizer that cannot belong to an embedding table of `table_rows` rows.

    kind: "qwen" or "t5". A table of the real size asks for the real tokenizer's length and ids; a
    smaller one (demo, tests) for the right special tokens. Every id that text can produce must be a
    row of the table. Raises ModelFileError with everything that is wrong.
    """
    facts = KINDS[kind]
    is_real = table_rows == facts.real_rows
    problems = _special_token_problems(facts, tokenizer, is_real) + _smoke_problems(
        facts, tokenizer
    )
    if is_real:
        problems += _known_id_problems(facts, tokenizer)
    problems += _range_problems(tokenizer, table_rows)
    if problems:
        size = f"{'the real' if is_real else 'an'} embedding table of {table_rows} rows"
        raise ModelFileError(
            f"the {facts.name} tokenizer in {tokenizer.name_or_path} does not belong to this model"
            f" ({size}): {'; '.join(problems)}. Give the right one with {facts.flag}, or get it by"
            f" hand:\n{commands(facts, Path('<folder>'))}"
        )


def _load(kind: TokenizerKind, path: Path) -> PreTrainedTokenizerBase:
    """Load through transformers' own class, from local files only, and try the result out."""
    import transformers

    source = obtain_files(kind, path)
    files = _own_files(kind, source)
    if as_utf8(str(source)) != str(source):
        raise ModelFileError(
            f"the {kind.name} tokenizer lies in {source}, and its library opens no path that is not "
            "UTF-8. Rename the folder, or start inside it and give a relative path."
        )
    try:
        tokenizer = getattr(transformers, kind.class_name).from_pretrained(
            str(source), local_files_only=True, **files
        )
        # ComfyUI's behaviour, whatever the files say: nothing is cut, and a special token spelled
        # in a caption is that token.
        tokenizer.model_max_length = UNLIMITED
        tokenizer.split_special_tokens = False
        problems = _smoke_problems(kind, tokenizer)
    except Exception as error:  # whatever a damaged file makes the library raise
        raise ModelFileError(
            f"the {kind.name} tokenizer in {source} cannot be read: {_reason(kind, source, error)}"
        ) from error
    if problems:
        raise ModelFileError(
            f"the {kind.name} tokenizer in {source} does not work: {'; '.join(problems)}."
            f" The files are damaged or of another kind. {_how_to_get(kind, path)}"
        )
    return tokenizer


def _own_files(kind: TokenizerKind, source: Path) -> dict[str, str | None]:
    """The files of a tokenizer's folder by transformers' names for them, or None where one lacks.

    Given like this, the paths in tokenizer_config.json count for nothing. Raises ModelFileError for
    settings that transformers would follow out of the folder all the same.
    """
    if source.is_file():
        return {}
    file = source / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    followed = [settings[name] for name in ("vocab", "merges") if name in settings]
    versions = settings.get("fast_tokenizer_files") or []
    followed += versions if isinstance(versions, list) else [versions]
    paths = [each for each in followed if each and not isinstance(each, (dict, list))]
    if wrong := [str(each) for each in paths if each not in os.listdir(source)]:
        message = (
            f"names files that are not in its folder: {', '.join(wrong[:3])}. Download it again."
        )
        raise ModelFileError(message, source=str(file))
    found: dict[str, str | None] = dict.fromkeys(OWN_FILES.values())
    for name in (name for names in kind.file_sets for name in names):
        if _has_content(source / name):
            found[OWN_FILES[name]] = str(source / name)
    return found


def _reason(kind: TokenizerKind, source: Path, error: Exception) -> str:
    """The library's message; for a spiece.model without its packages, the true cause instead."""
    lacking = [
        package
        for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
        if kind is T5 and not _is_installed(module)
    ]
    if lacking:
        return f"spiece.model needs the package {' and '.join(lacking)} (pip install it)"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}. {_how_to_get(kind, source)}"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is not there either
        return False


def _add_qwen_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add those tokens of the real tokenizer that vocab.json and merges.txt do not hold."""
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    added = [AddedToken(t, normalized=False) for t in QWEN_ADDED_TOKENS if t not in known]
    if added:
        tokenizer.add_tokens(added)


def _smoke_problems(kind: TokenizerKind, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What is wrong with the encoding of a plain caption; finds toy tokenizers of any size."""
    ids = tokenizer(SMOKE_TEXT).input_ids
    if kind is QWEN:
        if tokenizer.decode(ids) != SMOKE_TEXT:
            return [f"{SMOKE_TEXT!r} becomes {ids}, which reads {tokenizer.decode(ids)!r}"]
        return []
    problems = []
    if not ids or ids[-1] != tokenizer.eos_token_id:
        problems.append(f"{SMOKE_TEXT!r} becomes {ids}, without </s> at the end")
    unknown = ids.count(tokenizer.unk_token_id)
    if unknown * 2 >= max(1, len(ids) - 1):
        problems.append(f"{SMOKE_TEXT!r} becomes {ids}, mostly <unk>")
    return problems


def _special_token_problems(
    kind: TokenizerKind, tokenizer: PreTrainedTokenizerBase, is_real: bool
) -> list[str]:
    """T5's special ids are the same in any size; Qwen's pad token must exist, at its real id when
    the model is the real one."""
    problems = []
    for name, expected in kind.special_ids.items():
        found = getattr(tokenizer, f"{name}_token_id")
        if found is None:
            problems.append(f"it has no {name} token")
        elif found != expected and (is_real or kind is T5):
            problems.append(f"its {name} token is {found}, expected {expected}")
    return problems


def _known_id_problems(kind: TokenizerKind, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    problems = []
    if len(tokenizer) != kind.real_length:
        problems.append(f"it has {len(tokenizer)} tokens, expected {kind.real_length}")
    for text, expected in kind.known_ids.items():
        found = tokenizer(text).input_ids
        if found != list(expected):
            problems.append(f"{text!r} becomes {found[:12]}, expected {list(expected)}")
    return problems


def _range_problems(tokenizer: PreTrainedTokenizerBase, table_rows: int) -> list[str]:
    """Ids outside the table. An added token counts when writing it in a caption produces it."""
    outside = {token: i for token, i in tokenizer.get_vocab().items() if i >= table_rows}
    added = tokenizer.get_added_vocab()
    reachable = {
        token: i
        for token, i in outside.items()
        if token not in added or i in tokenizer(f"a {token} b").input_ids
    }
    if not reachable:
        return []
    token, highest = max(reachable.items(), key=lambda item: item[1])
    return [f"{len(reachable)} of its ids are outside the table, up to {highest} ({token!r})"]


def _has_content(file: Path) -> bool:
    return os.path.isfile(file) and file.stat().st_size > 0


def commands(kind: TokenizerKind, folder: Path) -> str:
    """Command lines that fetch a tokenizer's files into `folder`."""
    return "\n".join("  " + line.format(folder=folder) for line in kind.by_hand)


def _how_to_get(kind: TokenizerKind, path: Path, missing: str = "") -> str:
    """What is missing where, and the commands that bring it."""
    folder = path.parent if os.path.isfile(path) or path.suffix in (".json", ".model") else path
    if not missing:
        return f"To get the files again by hand:\n{commands(kind, folder)}"
    state = "is not a tokenizer file" if os.path.isfile(path) else "has no such file"
    if not os.path.exists(path):
        state = "does not exist"
    return (
        f"the {kind.name} tokenizer is missing: {path} {state}. Needed: {missing}."
        f" Name its folder with {kind.flag}, or get the files by hand, with one of\n"
        f"{commands(kind, folder)}"
    )
