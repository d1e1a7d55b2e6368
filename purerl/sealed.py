"""One file of several members that is read whole or not at all: a zip archive that ends in its own checksum."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from purerl import results

_DIGEST = 64  # characters of a sha256 in hexadecimal
_MEMBER_TIME = (1980, 1, 1, 0, 0, 0)  # of every member: the same content gives the same file


def write(path: str | os.PathLike[str], members: Mapping[str, bytes], *, kind: str, version: int) -> Path:
    """Write members, name -> content, as one file at one stroke, and return its path; folders are made.

    `kind` (words without digits) and `version` say what the file is, and `read` asks for them. Any zip program can
    list it; after a change by one it is damaged.
    """
    file = Path(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _MEMBER_TIME), content, zipfile.ZIP_DEFLATED)
        # The archive's comment, and so the very end of the file. A digest of zeros keeps the place of the real one.
        archive.comment = f"{kind} {version} sha256 ".encode() + b"0" * _DIGEST
    body = buffer.getvalue()[:-_DIGEST]
    file.parent.mkdir(parents=True, exist_ok=True)
    results.replace_file(file, body + hashlib.sha256(body).hexdigest().encode())
    return file


def read(path: str | os.PathLike[str], *, kind: str, version: int) -> dict[str, bytes]:
    """Return the members of a file that `write` wrote.

    Raises FileNotFoundError where there is none, and ValueError, naming the file, if it is another kind's or another
    version's, cut short, or differs in a single bit from what was written.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, or no file; it takes a {kind}")
    content = file.read_bytes()
    end = re.search(re.escape(kind).encode() + rb" (\d{1,9}) sha256 [0-9a-f]{64}\Z", content)
    if end is None:
        raise ValueError(f"{file} is no {kind}, or it is cut short or damaged")
    if int(end[1]) != version:
        raise ValueError(f"{file} is a {kind} of format {int(end[1])}; this version of purerl reads format {version}")
    if hashlib.sha256(content[:-_DIGEST]).hexdigest().encode() != content[-_DIGEST:]:
        raise ValueError(f"{file} is damaged: its checksum is not that of its content")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
