"""The two tokenizers for given models: where they are, fetched where they are missing, loaded and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from library.anima_runtime import tokenizer_assets, tokenizer_fetch
from library.anima_runtime.tokenizer_assets import TokenizerFolders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from library.anima_runtime.config_adapter import AnimaConfig
    from library.anima_runtime.model_facts import ModelFacts, ModelFiles


def folders_of(anima: AnimaConfig, files: ModelFiles) -> TokenizerFolders:
    """Where the options say, else beside the models."""
    return TokenizerFolders(
        tokenizer_assets.find_qwen_tokenizer_dir(anima.qwen_tokenizer_dir, files.qwen),
        tokenizer_assets.find_t5_tokenizer_dir(anima.t5_tokenizer_dir, files.transformer),
    )


def fetch_missing(anima: AnimaConfig, folders: TokenizerFolders, facts: ModelFacts) -> None:
    """Bring those that are missing, unless the options forbid it. Raises ModelFileError."""
    if not anima.auto_download_t5_tokenizer:
        return
    for kind, folder, rows in (
        ("qwen", folders.qwen, facts.qwen_rows),
        ("t5", folders.t5, facts.params.llm_adapter.vocab),
    ):
        if tokenizer_fetch.can_be_fetched(kind, folder):
            tokenizer_fetch.fetch(
                kind,
                folder,
                tokenizer_fetch.sources_of(kind, anima),
                table_rows=rows,
                seconds=anima.download_timeout,
            )


def load_both(
    folders: TokenizerFolders, facts: ModelFacts
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Qwen's and T5's. Raises ModelFileError for what is missing, or does not fit its model."""
    qwen = tokenizer_assets.load_qwen_tokenizer(folders.qwen)
    t5 = tokenizer_assets.load_t5_tokenizer(folders.t5)
    tokenizer_assets.check_tokenizer("qwen", qwen, facts.qwen_rows)
    tokenizer_assets.check_tokenizer("t5", t5, facts.params.llm_adapter.vocab)
    return qwen, t5
