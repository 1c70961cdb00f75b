"""A wheel: `pip install` brings a command and a package that Python imports. https://packaging.python.org/en/latest/specifications/binary-distribution-format"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from cupola.compiler.package.archive import Member, write_zip
from cupola.compiler.package.contents import Contents
from cupola.compiler.package.platform_tags import platform_tag
from cupola.compiler.package.runtime_files import ROOT, VERSION, requirements

_SERVE = "serve"  # cupola's extra, and the package's


def write_wheel(contents: Contents, folder: Path) -> tuple[Path, list[Member]]:
    """Writes the wheel into `folder`; returns its file, and what is inside.

    Raises:
        OptionError: it can't be written.
        UnsupportedError: a library is for a system of which wheels know nothing.
    """
    tags = sorted({platform_tag(library, contents.artifact.path / library.file) for library in contents.manifest.libraries})
    file = folder / f"{contents.name}-{contents.version}-py3-none-{'.'.join(tags)}.whl"
    about = f"{contents.name}-{contents.version}.dist-info"
    texts = {"METADATA": _metadata(contents), "WHEEL": _wheel(tags), "entry_points.txt": _entry_points(contents)}
    members = contents.module_members() + contents.licenses(f"{about}/licenses")
    members += [Member(f"{about}/{name}", text.encode()) for name, text in texts.items()]
    record = "".join(f"{member.record()}\n" for member in members) + f"{about}/RECORD,,\n"
    members.append(Member(f"{about}/RECORD", record.encode()))
    write_zip(file, members)
    return file, members


def _metadata(contents: Contents) -> str:
    """https://packaging.python.org/en/latest/specifications/core-metadata."""
    manifest = contents.manifest
    head = [
        ("Metadata-Version", "2.4"),
        ("Name", contents.command),
        ("Version", contents.version),
        ("Summary", f"The language model {manifest.source.name} ({manifest.scheme}), compiled by cupola {VERSION}"),
        ("License-Expression", contents.license_expression),
        *(("License-File", name) for name in ("cupola.txt", "model.txt")),
        ("Requires-Python", metadata.metadata(ROOT)["Requires-Python"]),
        *(("Requires-Dist", line) for line in requirements()),
        ("Provides-Extra", _SERVE),
        *(("Requires-Dist", _of_extra(line)) for line in requirements(_SERVE)),
        ("Description-Content-Type", "text/markdown"),
    ]
    return (
        "".join(f"{field}: {value}\n" for field, value in head) + "\n" + _DESCRIPTION.format(name=contents.name, command=contents.command)
    )


def _of_extra(requirement: str) -> str:
    package, _, marker = requirement.partition("; ")
    condition = f'extra == "{_SERVE}"'
    return f"{package}; {f'({marker}) and ' if marker else ''}{condition}"


def _wheel(tags: Sequence[str]) -> str:
    lines = ["Wheel-Version: 1.0", f"Generator: cupola {VERSION}", "Root-Is-Purelib: false"]
    return "".join(f"{line}\n" for line in (*lines, *(f"Tag: py3-none-{tag}" for tag in tags)))


def _entry_points(contents: Contents) -> str:
    return f"[console_scripts]\n{contents.command} = {contents.name}.__main__:main\n"


_DESCRIPTION = """\
    {command} run -p "Why is the sky blue?"
    {command} chat

```python
import {name}

llm = {name}.load()
print(llm.chat([{{"role": "user", "content": "Why is the sky blue?"}}])[0].outputs[0].text)
```

`pip install '{command}[serve]'` brings what `{command} serve` takes, a server with OpenAI's API.
"""
