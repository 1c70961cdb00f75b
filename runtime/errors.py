"""Every error that cupola raises on purpose.

CupolaError
├── InputError              something the user gave: exit code 2 on the command line
│   ├── OptionError         a bad option or argument value
│   ├── SourceError         a model file or folder that is damaged, unsafe or incomplete
│   ├── UnsupportedError    a model or feature that cupola knows it cannot run rightly
│   ├── ArtifactError       an artifact that is damaged, too new, or for another machine
│   └── RequestError        a prompt or sampling parameter (also a ValueError)
│       └── ContextLengthError  a prompt that is too long
└── EngineError             the engine cannot go on
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` as one line of a log or a terminal: what does not print, such as a newline or an escape, is written as Python writes it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class CupolaError(Exception):
    """The root of the tree."""


class InputError(CupolaError):
    """Bad input: one line that names the file, the field and the fix.

    Args:
        message: what is wrong, in plain words.
        file: the file or folder at fault, if there is one.
        field: the field, tensor, option or parameter at fault.
        fix: what the user can do about it.
    """

    def __init__(self, message: str, *, file: object = None, field: str | None = None, fix: str | None = None) -> None:
        self.message, self.file, self.field, self.fix = message, file, field, fix
        where = ": ".join(str(part) for part in (file, field) if part is not None)
        line = f"{where}: {message}" if where else message
        super().__init__(f"{line} ({fix})" if fix else line)


class OptionError(InputError):
    """A bad option or argument value."""


class SourceError(InputError):
    """A model file or folder that is damaged, unsafe or incomplete."""


class UnsupportedError(InputError):
    """A model or feature that cupola knows it cannot run rightly."""


class ArtifactError(InputError):
    """An artifact that is damaged, too new, or for another machine."""


class RequestError(InputError, ValueError):
    """A prompt or sampling parameter that the engine cannot take."""


class ContextLengthError(RequestError):
    """A prompt that is longer than a sequence may be, in the words by which OpenAI's clients know it.

    Args:
        length: what the prompt has, such as "700 tokens".
        max_length: tokens that a sequence may have.
        context_length: tokens of the model's context, more than `max_length` if memory for K/V is what is short.
    """

    def __init__(self, length: str, max_length: int, context_length: int | None = None) -> None:
        held = "" if context_length in (None, max_length) else f" The model's own is {context_length}, but kv_memory holds no more."
        sentence = f"This model's maximum context length is {max_length} tokens. However, your prompt has {length}.{held}"
        super().__init__(sentence, field="prompt", fix="Please reduce the length of the prompt")


class EngineError(CupolaError):
    """The engine cannot go on."""
