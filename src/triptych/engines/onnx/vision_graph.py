"""The graph of the image encoder EfficientNet-Lite2 (Tan & Le 2019), with batch norms folded into its convolutions."""

from __future__ import annotations

from collections.abc import Mapping

from triptych.engines.onnx.convolutions import Convolution
from triptych.engines.onnx.graph import Graph
from triptych.nn.efficientnet import LAYERS, Layer


class EncoderGraph:
    """The layers from ``first`` up to ``end``. The input is ``pixel_values [B, 3, H, H]``, or ``features`` of an earlier layer; the output
    is ``[B, C, h, w]``, or ``[B, L, D]`` after the last layer."""

    def __init__(self, convolutions: Mapping[str, Convolution], first: int = 0, end: int = len(LAYERS)) -> None:
        self.convolutions, self.first, self.end = convolutions, first, end

    def write(self, name: str = "encoder") -> Graph:
        self.graph = graph = Graph(name)
        given = "features" if self.first else "pixel_values"
        x = graph.input(given, ["B", LAYERS[self.first].dim, "H", "W"])
        for index in range(self.first, self.end):
            x = self.layer(f"layers.{index}", LAYERS[index], x)
        dim = LAYERS[self.end - 1].out_dim
        if self.end == len(LAYERS):
            x = graph.add("Transpose", graph.reshape(x, 0, dim, -1), perm=[0, 2, 1])
            graph.output(x, "annotations" if self.first else "features", ["B", "L", dim])
        else:
            graph.output(x, "features", ["B", dim, "h", "w"])
        return graph

    def layer(self, name: str, layer: Layer, x: str) -> str:
        """A plain convolution with its ReLU6, or an inverted residual: expand, depthwise, project."""
        if not layer.inverted:
            return self.convolve(f"{name}.0", x, layer.stride, relu6=True)
        y = x if layer.expand == 1 else self.convolve(f"{name}.expand", x, relu6=True)
        y = self.convolve(f"{name}.depthwise", y, layer.stride, relu6=True, depthwise=True)
        y = self.convolve(f"{name}.project", y)
        return self.graph.add("Add", x, y) if layer.residual else y

    def convolve(self, name: str, x: str, stride: int = 1, relu6: bool = False, depthwise: bool = False) -> str:
        """A convolution with TensorFlow's SAME padding: the odd pixel goes to the right and the bottom."""
        weight, bias = self.convolutions[name]
        graph = self.graph
        x = graph.add(
            "Conv",
            x,
            graph.weight(weight),
            graph.weight(bias),
            kernel_shape=list(weight.shape[2:]),
            strides=[stride, stride],
            group=len(weight) if depthwise else 1,
            auto_pad="SAME_UPPER",
        )
        if not relu6:
            return x
        return graph.add("Clip", x, graph.scalar(0), graph.scalar(6))
