"""What a file of ours says beside its tensors: the JSON under the metadata key "flatvars". README.md specifies it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from ..errors import DamagedFileError
from .header import CODE_OF, Entry, Header, parse_json

FORMAT = 1
KEY = "flatvars"
KEY_CRC = "flatvars.crc32"


@dataclass
class Description:
    """Everything a file holds that is no tensor.

    Attributes:
        crc32: Checksum of each tensor's bytes, by its name in the file.
        variables: Of each variable by name: id, names, dtype, offset, stride, trainable, frozen, room, group.
        layout: Regions as [dtype, numel, trainable numel].
        streams: Prefixes of the tensors that are no values ("exp_avg", ...).
        training: Optimizers, schedulers, gradients' state, random number generators; None in a file of values.
        save: Token that the files of one save share.
        part: Which of how many files, from 1.
    """

    crc32: dict[str, str] = field(default_factory=dict)
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    layout: list[list[Any]] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    training: dict[str, Any] | None = None
    save: str = ""
    part: list[int] = field(default_factory=lambda: [1, 1])

    def encode(self, variables: str) -> str:
        """As members of a JSON object, but for `crc32`, which is known last.

        Args:
            variables: As JSON.
        """
        content = {"format": FORMAT, **self.__dict__}
        del content["crc32"], content["variables"]
        return f'{json.dumps(content, separators=(",", ":"), allow_nan=False)[1:-1]},"variables":{variables}'

    def name_of(self, key: str) -> tuple[str, str]:
        """The stream and the variable (or other name) of a tensor; the stream of values is ""."""
        stream, slash, name = key.partition("/")
        return (stream, name) if slash and stream in self.streams and key not in self.variables else ("", key)


def metadata_of(description: str, rows: bytes, crc32: str) -> dict[str, str]:
    """The strings for a header; "format" is what Hugging Face's loaders ask for.

    Args:
        description: What `Description.encode` returned.
        rows: What `digest_rows` returned.
        crc32: Checksum of each tensor, as members of a JSON object.
    """
    text = f'{{{description},"crc32":{{{crc32}}}}}'
    return {"format": "pt", KEY_CRC: _digest(text, rows), KEY: text}


def digest_rows(entries: Mapping[str, Entry]) -> bytes:
    """The table of tensors, as it goes into the checksum of the header: no bit of it flips unnoticed."""
    return "".join(
        f"{name}\t{CODE_OF[entry.dtype]}\t{','.join(map(str, entry.shape))}\t{entry.start}\n"
        for name, entry in sorted(entries.items(), key=itemgetter(0))
    ).encode()


def _digest(text: str, rows: bytes) -> str:
    return f"{zlib.crc32(rows, zlib.crc32(text.encode())):08x}"


def read_description(header: Header, where: str) -> Description | None:
    """The description in a header; None for files that other programs wrote.

    Raises:
        DamagedFileError: it does not fit its checksum, or is of a later format.
    """
    text, digest = header.metadata.get(KEY), header.metadata.get(KEY_CRC)
    if text is None and digest is None:
        return None
    if text is None or digest is None or digest != _digest(text, digest_rows(header.entries)):
        raise DamagedFileError(
            f"the header of {where} does not fit its checksum {digest}: bits of names, shapes or training state flipped"
        )
    content = parse_json(text.encode(), f"the description in {where}")
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise DamagedFileError(f"{where} is not of format {FORMAT}; read it with the version of flatvars that wrote it")
    try:
        description = Description(**content)
    except TypeError as error:
        raise DamagedFileError(f"the description in {where} has other fields than format {FORMAT}: {error}") from error
    _check_types(description, where)
    if set(description.crc32) != set(header.entries):
        raise DamagedFileError(f"{where} has not one checksum for each of its tensors")
    return description


def _check_types(description: Description, where: str) -> None:
    for name, value in Description().__dict__.items():
        found = getattr(description, name)
        expected = (dict, type(None)) if name == "training" else (type(value),)
        if not isinstance(found, expected):
            raise DamagedFileError(f"field {name!r} of the description in {where} is a {type(found).__name__}")
