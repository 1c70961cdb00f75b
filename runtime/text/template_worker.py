"""Renders chat templates. `worker_host.py` answers jobs by it; it imports nothing of cupola."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 8_000_000
MAX_MEMORY_BYTES = 1 << 30


class GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def prepare() -> Callable[[dict[str, Any]], dict[str, str]]:
    """The function that answers jobs."""
    return answer


def answer(job: dict[str, Any]) -> dict[str, str]:
    """A template's text, or its error."""
    try:
        return {"text": render(job["template"], job["variables"])}
    except MemoryError:
        return {"error": "out of memory"}
    except Exception as error:  # noqa: BLE001  whatever a template raises is its answer
        return {"error": f"{error or type(error).__name__}"[:500]}


def render(template: str, variables: dict[str, Any]) -> str:
    """The template's text, or ValueError if it is too long."""
    pieces, num_characters = [], 0
    for piece in compile_template(template).generate(variables):
        num_characters += len(piece)
        if num_characters > MAX_CHARACTERS:
            raise ValueError(f"it writes more than {MAX_CHARACTERS} characters")
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(maxsize=8)
def compile_template(template: str) -> jinja2.Template:
    """The template, ready to be rendered."""
    return make_environment().from_string(template)


def check_syntax(template: str) -> None:
    """Raises jinja2.TemplateSyntaxError. Nothing of the template is run: not even what compiling it would work out."""
    make_environment().parse(template)


def make_environment() -> jinja2.Environment:
    """A sandbox with the filters and functions that Hugging Face's templates expect."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, GenerationBlock])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment


def tojson(
    value: object, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """JSON without the escapes that HTML would need."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: object) -> NoReturn:
    """The function that templates call on messages that they can't take."""
    raise ValueError(str(message))


def strftime_now(pattern: str) -> str:
    """The local time, as `pattern` says."""
    return datetime.now().astimezone().strftime(pattern)
