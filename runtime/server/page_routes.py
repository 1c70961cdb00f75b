"""The chat page at `/`: files of the package, served as they are; there is no build step."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath

from fastapi import APIRouter, HTTPException, Request, Response

FOLDER = "page"
INDEX = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# The page loads and calls its own origin and nothing else, runs no inline code, and is framed by nobody. Browsers ask each time whether
# a file has changed, so that an upgrade shows at once.
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class PageFile:
    """A file's bytes, its media type and the entity tag that names this content."""

    content: bytes
    media_type: str
    etag: str


@functools.cache
def page_files() -> dict[str, PageFile]:
    """Name → file. What isn't in this table isn't served, whatever a path says."""
    files = {}
    for file in resources.files(__package__).joinpath(FOLDER).iterdir():
        media_type = MEDIA_TYPES.get(PurePath(file.name).suffix)
        if media_type:
            content = file.read_bytes()
            files[file.name] = PageFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return files


@router.api_route("/", methods=["GET", "HEAD"])
async def get_index(request: Request) -> Response:
    """The page."""
    return answer(request, INDEX)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def get_file(request: Request, name: str) -> Response:
    """A file of the page; 404 for any other name."""
    return answer(request, name)


def answer(request: Request, name: str) -> Response:
    """The file, or 304 without it where the browser has it already (RFC 9110, 13.1.2)."""
    file = page_files().get(name)
    if file is None:
        raise HTTPException(404, f"the page has no file {name!r}")
    headers = {**HEADERS, "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
