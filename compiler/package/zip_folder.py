"""A zip file with a folder that Python runs, for machines that have Python and the few packages that the runtime takes."""

from __future__ import annotations

from pathlib import Path

from cupola.compiler.package.archive import Member, write_zip
from cupola.compiler.package.contents import Contents
from cupola.compiler.package.runtime_files import requirements


def write_zip_folder(contents: Contents, folder: Path) -> tuple[Path, list[Member]]:
    """Writes the zip file into `folder`; returns it, and what is inside. Raises OptionError if it can't be written."""
    top = f"{contents.name}-{contents.version}"
    facts = {"name": contents.name, "command": contents.command, "top": top}
    texts = {
        "__main__.py": _MAIN,
        f"{contents.command}.sh": _SHELL,
        f"{contents.command}.cmd": _WINDOWS.replace("\n", "\r\n"),
        "README.txt": _README,
    }
    members = [Member(f"{top}/{name}", text.format(**facts).encode(), name.endswith(".sh")) for name, text in texts.items()]
    members.append(Member(f"{top}/requirements.txt", "".join(f"{line}\n" for line in requirements()).encode()))
    members += contents.licenses(f"{top}/licenses")
    members += [Member(f"{top}/{member.name}", member.content, member.is_program) for member in contents.module_members()]
    file = folder / f"{top}.zip"
    write_zip(file, members)
    return file, members


_MAIN = '''"""`python {top} run -p "…"`, where the folder {top} is that of this file."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
missing = [name for name in ("numpy", "tokenizers", "jinja2") if find_spec(name) is None]
if missing:
    sys.exit(f"error: {{sys.executable}} lacks {{', '.join(missing)}} (pip install -r {{HERE}}/requirements.txt)")
sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))  # for processes that it starts

from {name}.__main__ import main

main()
'''

_SHELL = """\
#!/bin/sh
exec "${{PYTHON:-python3}}" "$(dirname "$(readlink -f "$0" 2>/dev/null || echo "$0")")" "$@"
"""

_WINDOWS = """\
@if defined PYTHON ("%PYTHON%" "%~dp0." %*) else (python "%~dp0." %*)
"""

_README = """\
{command}: a language model, and what runs it. It needs Python 3.11 or newer.

    python3 -m pip install -r {top}/requirements.txt
    python3 {top} run -p "Why is the sky blue?"       or {top}/{command}.sh run -p "…", on Windows {top}\\{command} run -p "…"
    python3 {top} chat

In Python, with this folder on the path (sys.path):

    import {name}
    llm = {name}.load()
    print(llm.chat([{{"role": "user", "content": "Why is the sky blue?"}}])[0].outputs[0].text)

The licences of what is inside are in the folder licenses.
"""
