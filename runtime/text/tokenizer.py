"""The artifact's tokenizer: text to token ids and back, and chats to text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from cupola.runtime.artifact.folder import Artifact, template_name
from cupola.runtime.artifact.manifest import COMPILE_AGAIN, SPECIAL_TOKENS, TOKENIZER
from cupola.runtime.artifact.verified import identify
from cupola.runtime.errors import ArtifactError, ContextLengthError, OptionError, RequestError
from cupola.runtime.text.chat_template import ChatTemplate
from cupola.runtime.text.token_bytes import TokenBytes
from cupola.runtime.text.tokenizer_safety import is_harmless_decoder, is_harmless_encoder
from cupola.runtime.worker_process import TooExpensiveError, WorkerProcess

WORKER = Path(__file__).with_name("tokenizer_worker.py")
MAX_SECONDS = 10.0  # for one text, the start of the process included
INLINE_CHARACTERS = 4096  # shorter texts are encoded at once, if the tokenizer is harmless
THREAD_CHARACTERS = 16_384  # shorter ones in this process: quadratic time, the most of what counts as harmless, is half a second

MAX_TOKENS = 1 << 20  # of a text, if nobody says
MAX_CHARACTERS_PER_TOKEN = 64  # text longer than this times the context is refused before any work is spent on it


class Tokenizer:
    """A `tokenizers` tokenizer, read from `tokenizer.json`, which is `file`. `token_bytes` gives the bytes of single tokens.

    Args:
        is_bounded: whether texts that may take very long are encoded in a process of its own, in bounded time and memory: those of more
            than THREAD_CHARACTERS, and all if the tokenizer is of no shape that is known to be harmless.

    Raises:
        ArtifactError: if the file can't be read, or decoding could take any time or memory.
    """

    def __init__(self, file: Path, *, is_bounded: bool = False) -> None:
        identity = identify(file)  # a process that starts later must not read another one
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  the library raises plain Exception
            raise ArtifactError(f"can't be read: {error}", file=file, fix="compile the model again") from None
        self.file = file
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if not is_harmless_decoder(self._tokenizer):
            problem = "may make any length of text of a token, or take any time"
            raise ArtifactError(problem, file=file, field="decoder", fix="use a model whose tokenizer you trust")
        self.token_bytes = TokenBytes(self._tokenizer)
        self._worker = WorkerProcess(WORKER, str(file), identity, max_seconds=MAX_SECONDS) if is_bounded else None
        self._is_harmless = is_harmless_encoder(self._tokenizer)

    def encode(self, text: str, *, max_tokens: int = MAX_TOKENS, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`.

        Raises:
            RequestError: if the text is no valid Unicode, or far too long for `max_tokens` tokens, or takes too much time or memory.
            EngineError: if the process that encodes long texts was ended from outside, twice.
        """
        check_text(text, max_tokens)
        if self._worker is not None and not (self._is_harmless and len(text) <= THREAD_CHARACTERS):
            return self._encode_apart(self._worker, text, add_special_tokens)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def is_quick(self, text: str) -> bool:
        """True if encoding the text takes so little time that others may wait for it."""
        return self._is_harmless and len(text) <= INLINE_CHARACTERS

    def _encode_apart(self, worker: WorkerProcess, text: str, add_special_tokens: bool) -> list[int]:
        try:
            answer = worker.ask({"text": text, "add_special_tokens": add_special_tokens})
        except TooExpensiveError as error:
            answer = {"error": str(error)}
        if "ids" not in answer:
            raise RequestError(f"can't be turned into tokens: {answer['error']}", field="prompt", fix="shorten or change the text")
        ids: list[int] = answer["ids"]  # type: ignore[assignment]
        return ids

    def close(self) -> None:
        """Ends the process that encodes long texts; the next one starts it again."""
        if self._worker is not None:
            self._worker.close()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; ids that the tokenizer does not know add nothing."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the tokens that `decode` leaves out with `skip_special_tokens`."""
        return tuple(token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """The tokens that `decode` leaves out with `skip_special_tokens`."""
        return frozenset(token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def token_text(self, token_id: int) -> str:
        """The token's text in the middle of a text; bytes that are no character are replacement characters."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    @property
    def added_tokens(self) -> frozenset[str]:
        """The texts of the tokens beside the trained vocabulary, special or not."""
        return frozenset(token.content for token in self._tokenizer.get_added_tokens_decoder().values())

    def vocabulary(self) -> dict[str, int]:
        """Every token as the vocabulary writes it, with its id."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    def token(self, token_id: int) -> str | None:
        """How the vocabulary writes the token `token_id`, such as "<s>"; None if it has none."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token


def check_text(text: str, max_tokens: int) -> None:
    """Refuses text that no tokenizer should be asked to work on. Raises RequestError."""
    if len(text) > max_tokens * MAX_CHARACTERS_PER_TOKEN:
        raise ContextLengthError(f"{len(text)} characters, too many for that", max_tokens)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"has a lone surrogate at character {error.start}", field="prompt", fix="give valid Unicode text") from None


def load_tokenizer(artifact: Artifact, *, is_bounded: bool = False) -> Tokenizer | None:
    """The artifact's tokenizer, made as `Tokenizer` says; None if it came without one and takes token ids only."""
    return Tokenizer(artifact.path / TOKENIZER, is_bounded=is_bounded) if artifact.lists(TOKENIZER) else None


def load_chat_template(artifact: Artifact, tokenizer: Tokenizer | None, file: Path | None = None) -> ChatTemplate | None:
    """The artifact's chat templates, or the one in `file`; None if it came without any.

    Raises:
        ArtifactError: if one of the artifact's can't be read.
        OptionError: if `file` can't be read, or is no template.
    """
    if tokenizer is None:
        return None
    if file is not None:
        return ChatTemplate(_read_template(file), special_tokens(artifact))
    found = {name: file.name for file in artifact.manifest.files if (name := template_name(file.name))}
    if not found:
        return None
    return ChatTemplate({name: _read(artifact.path / file) for name, file in found.items()}, special_tokens(artifact))


def special_tokens(artifact: Artifact) -> dict[str, str]:
    """The texts of the tokens that the tokenizer knows by name, such as `bos_token`. Raises ArtifactError if the file is damaged."""
    if not artifact.lists(SPECIAL_TOKENS):
        return {}
    file = artifact.path / SPECIAL_TOKENS
    try:
        found = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"is not JSON: {error}", file=file, fix=COMPILE_AGAIN) from None
    if not isinstance(found, dict) or not all(name.isidentifier() and isinstance(token, str) for name, token in found.items()):
        raise ArtifactError("does not map names such as bos_token to texts", file=file, fix=COMPILE_AGAIN)
    return dict(found)


def _read_template(file: Path) -> str:
    """A template that whoever runs the model chose. Raises OptionError."""
    import jinja2

    from cupola.runtime.text.template_worker import check_syntax

    try:
        text = file.read_text(encoding="utf-8-sig")
        check_syntax(text)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"can't be read: {error}", file=file, field="chat_template", fix="give a file in UTF-8") from None
    except jinja2.TemplateSyntaxError as error:
        raise OptionError(f"line {error.lineno}: {error.message}", file=file, field="chat_template", fix="correct the template") from None
    return text


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"can't be read: {error}", file=file, fix=COMPILE_AGAIN) from None
