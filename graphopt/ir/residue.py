"""What GraphSurgeon has no place for: kept beside its objects as protobuf messages with only these fields."""

from __future__ import annotations

from typing import TypeVar

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from graphopt.errors import ModelError

ProtoT = TypeVar("ProtoT", bound=Message)


def residue_of(proto: ProtoT, handled: frozenset[str], where: str) -> ProtoT:
    """Return a proto with only the fields that are not in `handled`.

    Raises:
        ModelError: The proto has fields that the installed onnx does not know, so nobody can say what they mean.
    """
    unknown = [field.field_number for field in UnknownFieldSet(proto)]
    if unknown:
        raise ModelError(
            f"{where}: fields {unknown} are not known to onnx {onnx.__version__} and would be lost; "
            "install a newer onnx that knows them"
        )
    residue: ProtoT = type(proto)()
    for descriptor, value in proto.ListFields():
        if descriptor.name in handled and (descriptor.is_repeated or descriptor.message_type is not None or value):
            continue  # what is handled but set to nothing stays here: protobuf tells it from what is not set
        if descriptor.is_repeated:
            getattr(residue, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(residue, descriptor.name).CopyFrom(value)
        else:
            setattr(residue, descriptor.name, value)
    return residue
