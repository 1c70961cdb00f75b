"""The contents of a package: an artifact with some or all of its libraries, its name, its licences, and the runtime around it."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cupola.compiler.options import short_name
from cupola.compiler.package.archive import Member
from cupola.compiler.package.runtime_files import ROOT, VERSION, license_text, runtime_members
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import LICENSE, MANIFEST, LibrarySpec, Manifest
from cupola.runtime.errors import OptionError
from cupola.runtime.machine import architecture, system_of

FOLDER = "artifact"  # of the artifact, in the package
UNKNOWN = "not stated"
_VERSION = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*((a|b|rc)(0|[1-9]\d*))?(\.post(0|[1-9]\d*))?(\.dev(0|[1-9]\d*))?")
_TAKEN = {*sys.stdlib_module_names, ROOT, "numpy", "tokenizers", "jinja2", "markupsafe", "test"}
# As the hub and GGUF files name them, in lower case; https://spdx.org/licenses has names for these, and LicenseRef- is for others.
_SPDX = {
    "apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "bsd-2-clause": "BSD-2-Clause", "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0", "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc0-1.0": "CC0-1.0", "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only", "lgpl-3.0": "LGPL-3.0-only", "openrail": "LicenseRef-openrail", "unlicense": "Unlicense",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """An artifact that is to be packaged.

    Attributes:
        artifact: as it lies on the disk.
        manifest: that of the package, which may have fewer libraries.
        name: the package's, which Python imports.
        version: by PEP 440.
        model_license: its licence, the name in the first line; "" if nobody stated one.
    """

    artifact: Artifact
    manifest: Manifest
    name: str
    version: str
    model_license: str

    @property
    def command(self) -> str:
        """The command that it brings."""
        return self.name.replace("_", "-")

    @property
    def license_name(self) -> str:
        """The model's licence in a word, as its source has it."""
        return self.model_license.partition("\n")[0].strip() or UNKNOWN

    @property
    def license_expression(self) -> str:
        """The licences of all that is inside, in SPDX's terms."""
        if not self.model_license:
            return "Apache-2.0 AND LicenseRef-model"
        name = self.license_name.lower()
        model = _SPDX.get(name) or f"LicenseRef-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)[:60].strip('-') or 'model'}"
        return " AND ".join(dict.fromkeys(("Apache-2.0", model)))

    def licenses(self, folder: str) -> list[Member]:
        """The licences' texts, in a folder of the package."""
        model = self.model_license or "The source of this model states no licence.\n"
        texts = {"cupola.txt": license_text(), "model.txt": f"{self.manifest.source.name}\n\n{model}"}
        return [Member(f"{folder}/{name}", text.encode()) for name, text in texts.items()]

    def artifact_members(self, folder: str) -> list[Member]:
        """The artifact's files, in a folder of the package."""
        files = [Member(f"{folder}/{entry.name}", self.artifact.path / entry.name) for entry in self.manifest.files]
        return [Member(f"{folder}/{MANIFEST}", self.manifest.to_json().encode()), *files]

    def module_members(self) -> list[Member]:
        """The package that Python imports: the artifact, the runtime, and two modules that join them."""
        written = {"__init__.py": _MODULE, "__main__.py": _MAIN}
        facts = {
            "name": self.name, "version": self.version, "command": self.command, "cupola": VERSION, "folder": FOLDER,
            "about": f"{self.manifest.source.name}, {self.manifest.scheme}", "root": ROOT,
        }  # fmt: skip
        modules = [Member(f"{self.name}/{file}", text.format(**facts).encode()) for file, text in written.items()]
        return [*modules, *runtime_members(self.name), *self.artifact_members(f"{self.name}/{FOLDER}")]


def choose_contents(
    artifact: Artifact,
    *,
    name: str | None = None,
    version: str = "1.0",
    systems: Sequence[str] = (),
    architectures: Sequence[str] = (),
    license: str = "",
) -> Contents:
    """An artifact with the libraries for some systems and architectures, none meaning all.

    Raises:
        OptionError: the name or version is none for a package; there is no library for a system or architecture; or the model is a draft
            model.
    """
    artifact.manifest.model.check_answers(artifact.path)
    name = re.sub(r"[-.]+", "_", short_name(artifact.path.resolve()).lower()) if name is None else name
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name in _TAKEN or name != name.lower():
        problem = "is taken by another package" if name in _TAKEN else "is no name of a package in Python"
        raise OptionError(f"is {name!r:.80}, which {problem}", field="name", fix="give small letters, digits and _ with --name")
    if not _VERSION.fullmatch(version):
        raise OptionError(f"is {version!r:.60}, which is no version", field="version", fix="give one such as 1.0, by PEP 440")
    libraries = [library for library in artifact.manifest.libraries if _is_wanted(library, systems, architectures)]
    known = [(system_of(library.target.triple), _architecture(library)) for library in artifact.manifest.libraries]
    for field, wanted, place in (("os", systems, 0), ("arch", architectures, 1)):
        for one in wanted:
            if one not in {facts[place] for facts in known}:
                listed = ", ".join(dict.fromkeys(f"{system} on {machine}" for system, machine in known))
                raise OptionError(f"is {one!r:.60}, and the artifact has {listed}", field=field, fix="compile it for that, or take those")
    if not libraries:
        raise OptionError("leaves no library of the artifact", field="arch", fix="see with `cupola inspect` what it has")
    left_out = {file for library in artifact.manifest.libraries if library not in libraries for file in (library.file, library.plan)}
    left_out -= {file for library in libraries for file in (library.file, library.plan)}
    files = tuple(file for file in artifact.manifest.files if file.name not in left_out)
    manifest = replace(artifact.manifest, libraries=tuple(libraries), files=files)
    stated = (artifact.path / LICENSE).read_text("utf-8") if artifact.lists(LICENSE) else ""
    return Contents(artifact, manifest, name, version, license or stated)


def _is_wanted(library: LibrarySpec, systems: Sequence[str], architectures: Sequence[str]) -> bool:
    is_system = not systems or system_of(library.target.triple) in systems
    return is_system and (not architectures or _architecture(library) in architectures)


def _architecture(library: LibrarySpec) -> str:
    return architecture(library.target.triple.partition("-")[0])


_MODULE = '''"""{about}: a language model, compiled by cupola {cupola}, and what runs it.

    import {name}
    llm = {name}.load()
    print(llm.chat([{{"role": "user", "content": "Why is the sky blue?"}}])[0].outputs[0].text)

`{name}.cupola` has all of its interface, such as `SamplingParams`; names from there may be asked for here, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from {name} import {root}

if TYPE_CHECKING:
    from {name}.{root} import LLM

__version__ = "{version}"
ARTIFACT = Path(__file__).with_name("{folder}")


def load(**options: Any) -> LLM:
    """The model, ready to generate. Options are those of `LLM`, such as `max_num_seqs` or `memory_budget`."""
    return {root}.LLM(ARTIFACT, **options)


def __getattr__(name: str) -> object:
    if name not in {root}.__all__:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    return getattr({root}, name)
'''

_MAIN = '''"""The command `{command}`, and `python -m {name}`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from {name} import ARTIFACT, __version__
from {name}.{root}.__main__ import start


def main() -> None:
    """Runs the command line."""
    start(_command_line)


def _command_line() -> Callable[[Sequence[str]], int]:
    from {name}.{root}.compiler.cli.plain import Program, run

    return partial(run, program=Program("{command}", __version__, "{about}: a language model in a package.", model=ARTIFACT))


if __name__ == "__main__":
    main()
'''
