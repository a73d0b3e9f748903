"""Text as the pieces of a SentencePiece model, trained here or elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from mmkit.contracts.options import Count, Fraction
from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.errors import ContractError, DataError

SPACE = "\u2581"
"""What stands for a space inside a model's pieces. SentencePiece reads it as a space in texts, too."""

SMALLEST = 258
"""The unknown piece, one for each byte, and one that was learned."""

LINE = 1024
"""Characters of one training sentence: SentencePiece skips those of more than 4,192 bytes."""


class SentencePiece(Tokenizer):
    """SentencePiece (Kudo & Richardson 2018, arXiv 1808.06226), unigram or BPE.

    A model trained here by `fit` writes every text back exactly: it does not normalise, it keeps all spaces, and it spells
    what it has not seen in bytes; so it does with U+2581, SentencePiece's own space, and all behind it. As in Llama and T5, a
    word at the start of a text is the piece that it is inside one (``add_dummy_prefix``). There are no control pieces:
    the marks around spans are the composition's.

    A model from elsewhere gives the ids that the sentencepiece library gives, and loses what that model loses: U+2581
    comes back as a space; models that normalise (NFKC) change letters, and those that fold spaces drop leading and
    repeated ones; without byte pieces, what it does not know becomes its unknown piece. Its control pieces (bos, eos, pad)
    are never written by `encode`, and `decode` leaves them out.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Give `model`, or `vocab_size` to have one trained.

        Options:
            model: path of a ``.model`` file.
            vocab_size: how many codes there are. Training learns that many pieces at most, fewer from little text; codes
                beyond them stand for nothing.
            kind: ``bpe`` or ``unigram``, for training. From little text BPE learns whole words, and unigram little more than
                letters.
            character_coverage: share of the training text's characters that get pieces of their own; the others are spelled
                in bytes.
        """

        vocab_size: Count | None = None
        model: str | None = None
        kind: Literal["bpe", "unigram"] = "bpe"
        character_coverage: Fraction = 0.9995

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._reader: tuple[Tensor, int, sentencepiece.SentencePieceProcessor] | None = None
        proto = b""
        if config.model is not None:
            proto = _read(config)
        elif config.vocab_size is None or config.vocab_size < SMALLEST:
            raise ContractError(
                "vocab_size", f"{config.vocab_size or 'nothing'} leaves no room for pieces beside the 256 bytes",
                f"give at least {SMALLEST}, or name a `model`",
            )  # fmt: skip
        self.register_buffer("proto", _as_tensor(proto))
        size = _parse(proto).vocab_size() if proto else config.vocab_size
        self.port = Port("text", "codes", codebook_size=size, axes=1)

    @property
    def fitted(self) -> bool:
        """False before `fit` where no model is named."""
        return self.proto.numel() > 0

    @property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """The sentencepiece library's reader of the model. Raises `ContractError` before `fit`."""
        if not self.fitted:
            raise ContractError("SentencePiece", "it has no pieces yet", "train it with `fit`, or name a `model`")
        # The bytes may change under us (a checkpoint, another rank's broadcast), and parsing them each time costs 10 ms.
        if self._reader is None or self._reader[0] is not self.proto or self._reader[1] != self.proto._version:
            processor = _parse(self.proto.cpu().numpy().tobytes())
            if processor.vocab_size() > self.port.codebook_size:
                raise ContractError(
                    "SentencePiece",
                    f"the loaded model has {processor.vocab_size()} pieces, this tokenizer {self.port.codebook_size} codes",
                    "set `vocab_size` to at least the pieces of the model",
                )
            self._reader = self.proto, self.proto._version, processor
        return self._reader[2]

    def encode(self, contents: Sequence[str]) -> list[Tensor]:
        """Codes ``[pieces]`` (int64, on the CPU). Raises `DataError` on half a surrogate pair."""
        processor = self.processor
        split = [self._split(processor, text) for text in contents]
        # All texts in one call, and by way of numpy: a batch of short texts takes half the time.
        codes = processor.encode([text for text, _ in split], num_threads=1) if split else []
        return [torch.from_numpy(np.array(c + rest, np.int64)) for c, (_, rest) in zip(codes, split, strict=True)]

    def decode(self, tokens: Sequence[Tensor]) -> list[str]:
        """Texts of codes ``[n]``; codes beyond the model's pieces are left out."""
        size = self.processor.vocab_size()
        return [self.processor.decode([code for code in codes.tolist() if code < size]) for codes in tokens]

    def fit(self, contents: Iterable[str]) -> None:
        """Trains the model on texts: the same texts in the same order give the same bytes.

        Does nothing where a model is named. Raises `DataError` where the texts do not make one.
        """
        if self.config.model is not None:
            return
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(contents),
                model_writer=written,
                model_type=self.config.kind,
                vocab_size=self.config.vocab_size,
                hard_vocab_limit=False,
                character_coverage=self.config.character_coverage,
                # Without a piece of its own a space would be spelled in U+2581's bytes, and come back as U+2581.
                required_chars=SPACE,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=True,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                unk_id=0,
                unk_surface="\ufffd",
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=3,
            )
        except RuntimeError as error:
            raise DataError(
                "SentencePiece", f"these texts make no model of at most {self.config.vocab_size} pieces ({error})",
                "give more text, or raise `vocab_size`, or lower `character_coverage`",
            ) from error  # fmt: skip
        self.proto = _as_tensor(written.getvalue()).to(self.proto.device)

    def _split(self, processor: sentencepiece.SentencePieceProcessor, text: str) -> tuple[str, list[int]]:
        """What the library is to encode of a text, and the codes of the rest."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                "SentencePiece",
                f"a text has half a surrogate pair, {text[error.start]!r}, at character {error.start}",
                "repair it where it is read: such strings come from files opened with errors='surrogateescape'",
            ) from error
        if self.config.model is not None or SPACE not in text:
            return text, []
        # The library would take what stands behind for a text of its own, and begin it with a space.
        start = text.index(SPACE)
        rest = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in text[start:].encode()]
        return text[:start], rest

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """How long a model is, only the checkpoint knows."""
        saved = state_dict.get(prefix + "proto")
        if saved is not None and saved.shape != self.proto.shape:
            self.proto = self.proto.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _read(config: SentencePiece.Config) -> bytes:
    if config.vocab_size is not None:
        raise ContractError(
            "vocab_size", f"{config.model} already says how many pieces it has", "leave `vocab_size` out"
        )
    path = Path(config.model).expanduser()
    if not path.is_file():
        raise ContractError("model", f"there is no file {path}", "give the path of a SentencePiece .model file")
    proto = path.read_bytes()
    try:
        _parse(proto)
    except RuntimeError as error:
        raise ContractError(
            "model", f"{path} is not a SentencePiece model ({error})", "give a .model file that sentencepiece wrote"
        ) from error
    return proto


def _parse(proto: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def _as_tensor(proto: bytes) -> Tensor:
    return torch.tensor(list(proto), dtype=torch.uint8)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """What the trainer reads: lines short enough that it skips none, without the sign it takes for a space."""
    for text in texts:
        for line in text.replace(SPACE, " ").split("\n"):
            for start in range(0, len(line), LINE):
                yield line[start : start + LINE]
