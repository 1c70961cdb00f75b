"""Every error that cupola raises on purpose.

CupolaError
├── InputError              something the user gave: exit code 2 on the command line
│   ├── OptionError         a bad option or argument value
│   ├── SourceError         a model file or folder that is damaged, unsafe or incomplete
│   ├── UnsupportedError    a model or feature that cupola knows it cannot run rightly
│   ├── ArtifactError       an artifact that is damaged, too new, or for another machine
│   └── RequestError        a prompt or sampling parameter (also a ValueError)
└── EngineError             the engine cannot go on
"""

from __future__ import annotations


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


class EngineError(CupolaError):
    """The engine cannot go on."""
