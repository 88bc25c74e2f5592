"""What a file of ours says beside its tensors: the JSON under the metadata key "flatvars". README.md specifies it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from ..errors import DamagedFileError
from .header import CODE_OF, Header, TensorInfo, parse_json
from .schema import DESCRIPTION, has_form, is_deep

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


def digest_rows(entries: Mapping[str, TensorInfo]) -> bytes:
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
    wrong = sorted(set(content) ^ set(DESCRIPTION)) or [
        n for n, each in DESCRIPTION.items() if not has_form(content[n], each)
    ]
    if not wrong and is_deep(content["training"]):
        wrong = ["training"]
    if wrong:
        raise DamagedFileError(f"the description in {where} has {wrong[0]!r} not as format {FORMAT} has it")
    description = Description(**content)
    if set(description.crc32) != set(header.entries):
        raise DamagedFileError(f"{where} has not one checksum for each of its tensors")
    return description


def check_names(description: Description, entries: Mapping[str, TensorInfo], where: str) -> None:
    """Raises DamagedFileError where training state names what the file does not hold."""
    training = description.training
    if training is None:
        return
    gradients = training["gradients"]
    tensors = [f"grads/{name}" for name in gradients["touched"]] + [f"pending/{name}" for name in gradients["pending"]]
    tensors += training["random"]["tensors"] if training["random"] is not None else []
    named = {name for one in training["optimizers"] for group in one["groups"] for name in group["variables"]}
    named |= {*gradients["touched"], *gradients["pending"]}.union(*(one["steps"] for one in training["optimizers"]))
    absent = [key for key in tensors if key not in entries] + [n for n in named if n not in description.variables]
    if absent:
        raise DamagedFileError(f"{where} lacks {absent[0]!r}, which its training state needs")
