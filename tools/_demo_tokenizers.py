"""Small tokenizers of the two true kinds, trained on the spot on tags; and copies of real ones."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

WORDS = """1girl 1boy solo multiple girls no humans masterpiece best quality high quality highres absurdres
newest recent year safe sensitive score_9 score_8 score_7 score_6 looking at viewer looking away smile
open mouth closed mouth closed eyes one eye closed blush long hair short hair blue hair black hair
blonde hair brown hair pink hair white hair green eyes blue eyes red eyes hair ribbon hair bow hat
school uniform dress shirt skirt gloves standing sitting upper body full body from behind portrait
outdoors indoors sky cloud day night sunset sunrise star moon sun sea ocean beach mountain snow
forest tree grass flower petals city building window light shadow water reflection simple background
white background scenery landscape horizon wind rain winter spring summer autumn a photo of the red
jumping over highly detailed line art sketch watercolor anime style"""


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


QWEN_SETTINGS = {
    "tokenizer_config.json": _json(
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "pad_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
        }
    )
}


def train_t5(captions: Sequence[str]) -> dict[str, bytes]:
    """Files of a small SentencePiece tokenizer with T5's special tokens, by name."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus(captions)),
        model_writer=model,
        vocab_size=384,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return t5_files(model.getvalue())


def t5_files(model: bytes) -> dict[str, bytes]:
    """All files of the tokenizer whose SentencePiece model this is."""
    from transformers import T5Tokenizer

    with tempfile.TemporaryDirectory() as work:
        spiece = Path(work) / "spiece.model"
        spiece.write_bytes(model)
        tokenizer = T5Tokenizer.from_pretrained(work, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(Path(work) / "tokenizer.json"))
        files = {spiece.name: model}
        files["tokenizer.json"] = (Path(work) / "tokenizer.json").read_bytes()
    config = {
        "model_type": "t5",
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    return files | {"config.json": _json(config)}


def train_qwen(captions: Sequence[str]) -> dict[str, bytes]:
    """Files of a small byte-level BPE tokenizer, cut up as Qwen's, with its pad token, by name."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers
    from transformers import Qwen2Tokenizer

    # An empty Qwen2Tokenizer knows nothing, but normalizes and splits text as the real one does.
    backend = Qwen2Tokenizer().backend_tokenizer
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=448,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(captions), trainer)
    with tempfile.TemporaryDirectory() as work:
        files = {Path(name).name: Path(name).read_bytes() for name in bpe.model.save(work)}
    return files | QWEN_SETTINGS


def _corpus(captions: Sequence[str]) -> list[str]:
    """Captions, words, and every printable ASCII character, so that none is unknown to T5."""
    words = WORDS.split()
    pairs = [f"{a} {b}, {b}" for a, b in pairwise(words)]
    letters = " ".join(chr(i) for i in range(33, 127))
    return [*captions, *pairs, ", ".join(words), letters]
