"""Models from the Hugging Face hub, by their ids."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cupola.runtime.errors import SourceError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w][\w./-]{0,95})?")
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "spiece.model", "merges.txt", "README.md", "LICENSE*"]


def download(repository: str, progress: Callable[[str], None] | None = None) -> Path:
    """The folder of a hub model's configuration, safetensors and tokenizer, downloaded if need be; never its code.

    Args:
        repository: `organization/name`, or `organization/name@revision` with a branch, a tag or a commit.
        progress: is told, in a line, what takes time.

    Raises:
        SourceError: huggingface-hub is not installed, there is no network, or no such model.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SourceError(
            "is a hub id, and huggingface-hub is not installed", file=repository, fix="pip install huggingface-hub, or give a folder"
        ) from None
    name, _, revision = repository.partition("@")
    if progress:
        progress(f"downloading {repository}")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_PATTERNS, etag_timeout=10))
    # Network, authorization and cache trouble come from several libraries, whose errors have no root in common.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(type(error).__name__.removesuffix("Error").split())
        raise SourceError(
            f"could not be downloaded ({reason})",
            file=repository,
            fix="check the name and revision, the network and your access, or give a folder that has the files",
        ) from None
