"""Writes the index of a checkpoint with any content, and the check sums that TensorFlow wants."""

import struct

from tensorflow.core.protobuf import tensor_bundle_pb2


def entry(shape, dtype=1, **fields):
    """A tensor's entry, whose shape may be anything; dtype 1 is float32."""
    made = tensor_bundle_pb2.BundleEntryProto(dtype=dtype, **fields)
    for size in shape:
        made.shape.dim.add(size=size)
    return made


def write(prefix, entries, data=bytes(64)):
    """Writes a checkpoint.

    Args:
        prefix: of its path.
        entries: name -> BundleEntryProto.
        data: the tensors' bytes.
    """
    header = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
    header.version.producer = 1
    pairs = [(b"", header), *sorted((name.encode(), made) for name, made in entries.items())]
    prefix.with_name(f"{prefix.name}.index").write_bytes(
        table([(key, made.SerializeToString()) for key, made in pairs])
    )
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)


def table(pairs, handle=None, times=1):
    """A table of one block, named so often; the footer tells of the handle, if one is given."""
    content = block(pairs)
    named = pairs[-1][0] + b"\xff", number(0) + number(len(content) - 5)
    index_at, index = len(content), block([named] * times)
    handle = handle or (index_at, len(index) - 5)
    footer = number(0) * 2 + number(handle[0]) + number(handle[1])
    return content + index + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def block(pairs):
    """Keys and values, then where a key stands whole: at 0; how many of these; the check sum."""
    lengths = [(number(0) + number(len(key)) + number(len(value))) for key, value in pairs]
    content = b"".join(
        size + key + value for size, (key, value) in zip(lengths, pairs, strict=True)
    )
    content += struct.pack("<II", 0, 1) + b"\0"
    return content + struct.pack("<I", masked_crc(content))


def number(value):
    """7 bits a byte, the lowest first."""
    head = bytearray()
    while value >= 128:
        head.append(value & 127 | 128)
        value >>= 7
    return bytes([*head, value])


def masked_crc(content):
    """CRC-32C, as LevelDB and TFRecords store it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
