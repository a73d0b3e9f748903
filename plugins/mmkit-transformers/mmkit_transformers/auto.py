"""`auto`: text as the codes of any tokenizer of transformers, or of a byte-level BPE trained here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from mmkit.contracts.options import Count
from mmkit.contracts.port import Port
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.errors import ContractError, DataError

SMALLEST = 257
"""One code for each byte, and one that was learned."""


class Auto(Tokenizer):
    """A tokenizer as transformers reads it from a local folder, or a ``tokenizer.json``, or one trained by `fit`.

    Its whole definition, the text of a ``tokenizer.json``, is kept in the buffer `definition`, so that a run's checkpoint
    holds it. Codes are the file's ids, and texts are encoded as they stand: no begin or end token is added, nothing is
    cut off or filled up, and words such as ``</s>`` in a text are spelled out instead of becoming control tokens
    (`special` says otherwise). `decode` leaves control tokens and codes that stand for nothing out.

    What is lost on the way is the tokenizer's own choice. Byte-level ones (GPT-2, Llama 3, Qwen, DeepSeek) and those trained
    here write every text back exactly; some normalise to NFC first (Qwen). SentencePiece's (Llama 2, Mistral, Gemma) keep
    all but, in some, a leading space. WordPiece's (BERT) lose case, accents, spaces, and words they do not know.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Give `path`, or `vocab_size` to have a byte-level BPE trained.

        Options:
            path: a folder that transformers' AutoTokenizer can read, or a ``tokenizer.json``. Where it is gone, `vocab_size`
                is enough to build the tokenizer that a run's checkpoint fills.
            vocab_size: how many codes there are; with a `path`, at least as many as the tokenizer has, and as many as the
                table of a published model has rows. Codes beyond the tokenizer's stand for nothing.
            special: whether control tokens that are spelled out in a text, as a chat template does, become their codes.
        """

        path: str | None = None
        vocab_size: Count | None = None
        special: bool = False

    examples = ({"vocab_size": 280},)

    def __init__(self, config: Config) -> None:
        """Raises `ContractError` where there is no tokenizer at `path`, or `vocab_size` is too small."""
        super().__init__()
        self.config = config
        self._reader: _Reader | None = None
        definition = b""
        if config.path is not None:
            definition = _read(Path(config.path).expanduser(), required=config.vocab_size is None)
        elif config.vocab_size is None or config.vocab_size < SMALLEST:
            raise ContractError(
                "vocab_size", f"{config.vocab_size or 'nothing'} leaves no room for codes beside the 256 bytes",
                f"give at least {SMALLEST}, or name a `path`",
            )  # fmt: skip
        codes = _size(_parse(definition)) if definition else 0
        if config.vocab_size is not None and codes > config.vocab_size:
            raise ContractError(
                "vocab_size",
                f"{config.path} has {codes} codes, more than {config.vocab_size}",
                f"give at least {codes}",
            )
        self.register_buffer("definition", _as_tensor(definition))
        self.port = Port("text", "codes", codebook_size=config.vocab_size or codes, axes=1)

    @property
    def fitted(self) -> bool:
        """False before `fit`, and where the file at `path` is gone, before a checkpoint is loaded."""
        return self.definition.numel() > 0

    @property
    def reader(self) -> tokenizers.Tokenizer:
        """The tokenizers library's own object. Raises `ContractError` before there is a definition."""
        if not self.fitted:
            raise ContractError(
                "Auto", "it has no codes yet", "train it with `fit`, name a `path`, or load a checkpoint"
            )
        # The bytes may change under us (a checkpoint, another rank's broadcast), and parsing them each time takes long.
        if self._reader is None or not self._reader.of(self.definition):
            found = _parse(self.definition.cpu().numpy().tobytes())
            if _size(found) > self.port.codebook_size:
                raise ContractError(
                    "Auto", f"the loaded tokenizer has {_size(found)} codes, and {self.port.codebook_size} are stated",
                    "set `vocab_size` to at least the codes of the tokenizer",
                )  # fmt: skip
            found.encode_special_tokens = not self.config.special
            self._reader = _Reader(self.definition, self.definition._version, found)
        return self._reader.tokenizer

    def encode(self, contents: Sequence[str]) -> list[Tensor]:
        """Codes ``[n]`` (int64, on the CPU). Raises `DataError` on half a surrogate pair."""
        reader = self.reader
        return [torch.tensor(reader.encode(_sound(text), add_special_tokens=False).ids, dtype=torch.int64, device="cpu")
                for text in contents]  # fmt: skip

    def decode(self, tokens: Sequence[Tensor]) -> list[str]:
        """Texts of codes ``[n]``; codes that stand for nothing are left out, and so are control tokens without `special`."""
        reader = self.reader
        return [reader.decode([code for code in codes.tolist() if reader.id_to_token(code) is not None],
                              skip_special_tokens=not self.config.special) for codes in tokens]  # fmt: skip

    def fit(self, contents: Iterable[str]) -> None:
        """Trains a byte-level BPE on texts: the same texts in the same order give the same definition.

        Does nothing where a definition is there. Raises `ContractError` where `path` names a file that is gone.
        """
        if self.fitted and self.config.path is not None:
            return
        if self.config.path is not None:
            raise _nothing_at(Path(self.config.path))
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.config.vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )  # fmt: skip
        bpe.train_from_iterator(map(_sound, contents), trainer)
        self.definition = _as_tensor(bpe.to_str().encode()).to(self.definition.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """How long a definition is, only the checkpoint knows."""
        saved = state_dict.get(prefix + "definition")
        if saved is not None and saved.shape != self.definition.shape:
            self.definition = self.definition.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True)
class _Reader:
    """A parsed tokenizer, and the state of the buffer that it was parsed from."""

    definition: Tensor
    version: int
    tokenizer: tokenizers.Tokenizer

    def of(self, definition: Tensor) -> bool:
        return self.definition is definition and self.version == definition._version

    def __deepcopy__(self, memory: dict[int, Any]) -> None:
        """A copy of the part parses its own."""


def _read(path: Path, *, required: bool) -> bytes:
    """The definition at a path; nothing where there is none and none is required."""
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        if required:
            raise _nothing_at(path)
        return b""
    definition = path.read_bytes()
    try:
        _parse(definition)
    except ValueError as error:
        raise ContractError(
            "path", f"{path} is no tokenizer.json ({error})", "name a file the tokenizers library wrote"
        ) from error
    return definition


def _from_folder(path: Path) -> bytes:
    """What AutoTokenizer makes of a folder, whatever files it holds; nothing is fetched, and no code of the folder is run."""
    from transformers import AutoTokenizer  # slow to import, and not needed for a tokenizer.json

    try:
        found = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        raise ContractError(
            "path",
            f"transformers finds no tokenizer in {path} ({said})",
            "name a tokenizer.json, or use the tokenizer `sentencepiece` for a SentencePiece model",
        ) from error
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise ContractError(
            "path", f"{type(found).__name__} is not one of the tokenizers library, so it has no definition to keep",
            "convert it to a tokenizer.json",
        )  # fmt: skip
    return backend.to_str().encode()


def _nothing_at(path: Path) -> ContractError:
    return ContractError("path", f"there is no {path}", "give the path of a folder or of a tokenizer.json")


def _parse(definition: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of a definition, which may ask to cut texts off or to fill them up: neither is done."""
    try:
        found = tokenizers.Tokenizer.from_str(definition.decode())
    except Exception as error:  # the library raises nothing more special
        raise ValueError(str(error)) from None
    found.no_truncation()
    found.no_padding()
    return found


def _size(tokenizer: tokenizers.Tokenizer) -> int:
    """One more than the largest id: ids may have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _sound(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "Auto", f"a text has half a surrogate pair, {text[error.start]!r}, at character {error.start}",
            "repair it where it is read: such strings come from files opened with errors='surrogateescape'",
        ) from error  # fmt: skip
    return text


def _as_tensor(definition: bytes) -> Tensor:
    """Bytes as a tensor on torch's current default device."""
    held = torch.empty(len(definition), dtype=torch.uint8)
    return held if held.is_meta else held.copy_(torch.from_numpy(np.frombuffer(definition, np.uint8).copy()))
