"""The file: safetensors with a JSON document in its header, and a checksum of all its bytes.

The checksum stands in the header, in a field of its own, and is that of the bytes with zeros in its place. So every
byte is vouched for before any of them is parsed.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_laplace._errors import InvalidData
from pyro_laplace.state import Packed

FORMAT = "1"
"""Version of the format; a reader takes files of its own and of all earlier ones."""

_FIELD = b'"pyro_laplace_sha256":"'
_ZEROS = b"0" * 64


def write(path: Path, content: Packed) -> None:
    """Write a file as a whole or not at all.

    Args:
        path: where to; a file that is there is replaced once the new one is complete.
        content: what to write.

    Raises:
        InvalidData: if the folder is not there.
    """
    from safetensors.torch import save  # its own library, which only files need

    if not path.parent.is_dir():
        raise InvalidData(f"cannot save to {path}: there is no folder {path.parent}")
    document = json.dumps({"format": FORMAT, "content": content.document}, allow_nan=False)
    metadata = {"pyro_laplace": document, "pyro_laplace_sha256": _ZEROS.decode()}
    tensors = {name: value.contiguous().cpu().clone() for name, value in content.tensors.items()}
    raw = save(tensors, metadata)
    place = raw.index(_FIELD) + len(_FIELD)
    checksum = hashlib.sha256(raw).hexdigest().encode()
    raw = raw[:place] + checksum + raw[place + len(_ZEROS) :]
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def read(path: Path) -> tuple[Any, Mapping[str, Tensor]]:
    """Read a file whose every byte is what was written.

    Args:
        path: of the file.

    Returns:
        the document and the tensors by name.

    Raises:
        InvalidData: if it is not there, is no file of `save`, is damaged or cut short, or comes from a newer version.
    """
    from safetensors.torch import load

    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidData(f"cannot read {path}: {error.strerror}. Give the path that pl.save wrote to") from error
    place = raw.find(_FIELD)
    if place < 0:
        raise InvalidData(f"{path} {_foreign(raw)}: give a file that pl.save wrote. Nothing of it was loaded")
    place += len(_FIELD)
    stated, zeroed = raw[place : place + 64], raw[:place] + _ZEROS + raw[place + 64 :]
    if len(stated) < 64 or hashlib.sha256(zeroed).hexdigest().encode() != stated:
        raise InvalidData(
            f"{path} is damaged: its {len(raw):,} bytes do not have the checksum that was written with them. It was "
            "cut short or changed since; copy it anew, or save the posterior again. Nothing of it was loaded"
        )
    size = int.from_bytes(raw[:8], "little")
    document = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["pyro_laplace"])
    if int(document["format"]) > int(FORMAT):
        raise InvalidData(
            f"{path} has the format {document['format']}, and this version of pyro_laplace reads up to {FORMAT}: "
            "install a newer pyro_laplace"
        )
    return document["content"], load(raw)


def _foreign(raw: bytes) -> str:
    if raw.startswith(b"PK") or raw[:1] == b"\x80":
        return "is a pickle (torch.save, pickle.dump), which could run code and is not read"
    if raw[8:9] == b"{":
        return "is a file of safetensors that holds no posterior, or is damaged"
    return "is empty" if not raw else "holds no posterior, or is damaged"
