"""The weights of a super-net by their own names, which `reference.py` takes."""

from auto_deeplab.search.packed_weights import PackedWeights


def parts(net):
    """Stem, nodes in the trellis' order, heads: the layers that have weights."""
    return [net.stem, *net.nodes, *net.heads]


def packs(part):
    """The PackedWeights of a layer and of the layers inside it, in the order of the variables."""
    return [own for own in part._flatten_layers() if isinstance(own, PackedWeights)]


def packed(parts):
    """{part: values of its trainable variables, by PackedWeights}."""
    return {
        part.name: [[variable.value for variable in pack.variables] for pack in packs(part)]
        for part in parts
    }


def unpacked(parts, values):
    """{part: {name: weight}}, of values as `packed` gives them or of gradients by these."""
    return {
        part.name: {
            name: weight
            for pack, own in zip(packs(part), values[part.name], strict=True)
            for name, weight in pack.unpack(own).items()
        }
        for part in parts
    }
