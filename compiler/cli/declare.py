"""How commands say what they take: in typer's words or, where typer is not installed, in stand-ins for them that `plain.py` reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

try:
    from typer import Argument, Exit, Option
except ModuleNotFoundError:  # artifacts run without it

    @dataclass(frozen=True)
    class Declared:
        """A parameter's flags, none for one that is given by its position, its help, and the group of options that it stands in; named
        as in typer, whose own may stand in for it."""

        param_decls: tuple[str, ...]
        help: str
        rich_help_panel: str | None

    class Exit(RuntimeError):  # type: ignore[no-redef]
        """Ends the command with an exit code, without a message."""

        def __init__(self, code: int = 0) -> None:
            super().__init__()
            self.exit_code = code

    def _declare(*flags: str, help: str = "", rich_help_panel: str | None = None, **_typers_own: object) -> Any:
        return Declared(flags, help, rich_help_panel)

    Argument = Option = _declare  # type: ignore[assignment]


__all__ = ["Argument", "Exit", "Option"]
