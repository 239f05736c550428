"""What the variables of the published network are called in the authors' TF1 graph.

That graph is DeepLab's model variant `nas_hnasnet`, with dense convolutions in ASPP and decoder.
"""

from auto_deeplab.space.genotype import PUBLISHED_CELL

_HEAD = {
    "aspp/pooled": "image_pooling",
    **{f"aspp/branch_{number}": f"aspp{number}" for number in range(4)},
    "aspp/project": "concat_projection",
    "decoder/low_level": "decoder/feature_projection0",
    **{
        f"decoder/conv_{number}": f"decoder/decoder_conv0/decoder_conv0_{number + 1}"
        for number in range(2)
    },
    "decoder/logits": "logits/semantic",
}

_KERNELS = {
    "kernel": "weights",
    "bias": "biases",
    "depthwise_kernel": "depthwise_weights",
    "pointwise_kernel": "pointwise_weights",
}


def find_tf1_name(path: str) -> str:
    """Finds what a variable is called in TF1's graph; its shape is the same there.

    Args:
        path: of a variable of a `Network` with the published genotype, such as
            network/cell_0/blocks/block_0_right/first/norm/gamma.

    Returns:
        such as hnasnet/cell_0/comb_iter_0/right/bn_sep_3x3_1/gamma.
    """
    layer, _, variable = path.removeprefix("network/").rpartition("/")
    convolution, norm = _find_scopes(layer.removesuffix("/norm"))
    return f"{convolution}/{_KERNELS[variable]}" if variable in _KERNELS else f"{norm}/{variable}"


def _find_scopes(layer: str) -> tuple[str, str]:
    """TF1's scopes of a layer's convolution and of its batch normalisation."""
    match layer.split("/"):
        case ["stem", name]:
            scope = f"hnasnet/{name.replace('_', '')}"
            return scope, f"{scope}_bn"
        case [cell, "first"]:
            return f"hnasnet/{cell}/1x1", f"hnasnet/{cell}/beginning_bn"
        case [cell, "second"]:
            return f"hnasnet/{cell}/prev_1x1", f"hnasnet/{cell}/prev_bn"
        case [cell, "blocks", branch, part]:
            _, block, side = branch.split("_")
            _, operation = PUBLISHED_CELL[int(block)][("left", "right").index(side)]
            scope, size = f"hnasnet/{cell}/comb_iter_{block}/{side}", operation[-len("3x3") :]
            if part == "conv":  # atrous, at stride 2 too, where its rate is 1
                return f"{scope}/atrous_{size}", f"{scope}/bn_atr_{size}"
            half = ("first", "second").index(part) + 1
            return f"{scope}/separable_{size}_{half}", f"{scope}/bn_sep_{size}_{half}"
    return _HEAD[layer], f"{_HEAD[layer]}/BatchNorm"
