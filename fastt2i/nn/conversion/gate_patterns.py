"""How gates look in a torch.fx graph."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastt2i.nn.gated_conv import Gate

PRODUCTS = {operator.mul, torch.mul, "mul"}
SIGMOIDS = {torch.sigmoid, F.sigmoid, "sigmoid"}
POINTWISE = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), "relu"),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), "tanh"),
    F.silu: "silu",
}
LAYERS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.SiLU: "silu", nn.Identity: "identity"}


@dataclass(kw_only=True)
class GatePattern:
    """act(f) * sigmoid(g) in a graph.

    Attributes:
        source: what gives f and g as halves of its channels; or the convolution that gives f.
        gate_conv: the convolution that gives g, where there are two.
        product: the last node.
        nodes: those between source and product, and it.
        activation, slope: of f.
        is_layer: whether the gate is a `Gate` already.
    """

    source: fx.Node
    product: fx.Node
    nodes: set[fx.Node]
    activation: str = "identity"
    slope: float = 0.2
    gate_conv: fx.Node | None = None
    is_layer: bool = False

    def erase(self, graph: fx.Graph, by: fx.Node) -> None:
        """Put another node in the product's place, and remove what only the product needed."""
        self.product.replace_all_uses_with(by)
        unused = self.nodes | ({self.gate_conv} if self.gate_conv else set())
        for node in reversed(list(graph.nodes)):
            if node in unused and not node.users:
                graph.erase_node(node)


@dataclass
class _Half:
    source: fx.Node
    place: int
    nodes: set[fx.Node] = field(default_factory=set)


def find_gates(graph: fx.Graph, module: nn.Module) -> tuple[list[GatePattern], list[str]]:
    """The gates of a graph, and reasons for what looks like one and cannot be replaced."""
    patterns: list[GatePattern] = []
    reasons: list[str] = []
    for node in graph.nodes:
        found = _glu(node, module) or _written_out(node, module)
        if isinstance(found, str):
            reasons.append(found)
        elif found is not None:
            patterns.append(found)
    return patterns, reasons


def _glu(node: fx.Node, module: nn.Module) -> GatePattern | str | None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.op == "call_module" and type(layer := module.get_submodule(str(node.target))) is Gate:
        return GatePattern(
            source=source,
            product=node,
            nodes={node},
            activation=layer.activation,
            slope=layer.negative_slope,
            is_layer=True,
        )
    if node.target is not F.glu:
        return None
    if _argument(node, 1, "dim", -1) not in (1, -3):
        return "its glu is not over channels"
    return GatePattern(source=source, product=node, nodes={node})


def _written_out(node: fx.Node, module: nn.Module) -> GatePattern | str | None:
    if node.target not in PRODUCTS or len(node.args) != 2:
        return None
    for feature, gate in (node.args, node.args[::-1]):
        if not (isinstance(feature, fx.Node) and isinstance(gate, fx.Node) and _is_sigmoid(gate, module)):
            continue
        activated = _activation(feature, module)
        own, input_of_gate = activated[0], gate.args[0]
        assert isinstance(input_of_gate, fx.Node)
        nodes = {node, feature, gate} if own is not feature else {node, gate}
        return _from_halves(node, own, input_of_gate, nodes, activated, module) or _from_convs(
            node, own, input_of_gate, nodes, activated, module
        )
    return None


def _from_halves(
    product: fx.Node,
    feature: fx.Node,
    gate: fx.Node,
    nodes: set[fx.Node],
    activated: tuple[fx.Node, str | None, float],
    module: nn.Module,
) -> GatePattern | str | None:
    halves = _half(feature, module), _half(gate, module)
    if halves[0] is None or halves[1] is None:
        return None
    if isinstance(halves[0], str) or isinstance(halves[1], str):
        return next(half for half in halves if isinstance(half, str))
    if halves[0].source is not halves[1].source or halves[0].place == halves[1].place:
        return None
    if halves[0].place == 1:
        return "its gate half comes first"
    source = halves[0].source
    inside = nodes | halves[0].nodes | halves[1].nodes
    return _checked(source, product, inside, activated, (inside - {product}) | {source})


def _from_convs(
    product: fx.Node,
    feature: fx.Node,
    gate: fx.Node,
    nodes: set[fx.Node],
    activated: tuple[fx.Node, str | None, float],
    module: nn.Module,
) -> GatePattern | str | None:
    """Two convolutions of one tensor."""
    if not (_is_conv(feature, module) and _is_conv(gate, module)) or feature.target == gate.target:
        return None
    if feature.args != gate.args:
        return None
    return _checked(feature, product, nodes, activated, nodes - {product}, gate)


def _checked(
    source: fx.Node,
    product: fx.Node,
    nodes: set[fx.Node],
    activated: tuple[fx.Node, str | None, float],
    private: set[fx.Node],
    gate_conv: fx.Node | None = None,
) -> GatePattern | str:
    """The pattern; a reason where the gate lacks its activation, or where one of `private` is used outside of it."""
    _, activation, slope = activated
    if activation is None:
        return "the activation of its feature half is none that the gate has"
    if any(user not in nodes for node in private for user in node.users):
        return "what it gates is used elsewhere too"
    return GatePattern(
        source=source, product=product, nodes=nodes, activation=activation, slope=slope, gate_conv=gate_conv
    )


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _is_sigmoid(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) is nn.Sigmoid
    return node.op in ("call_function", "call_method") and node.target in SIGMOIDS


def _is_conv(node: fx.Node, module: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.Conv2d)


def _activation(node: fx.Node, module: nn.Module) -> tuple[fx.Node, str | None, float]:
    """What is activated, the activation's name, None for one that the gate does not have, and the slope."""
    inside = node.args[0] if node.args else None
    if not isinstance(inside, fx.Node):
        return node, "identity", 0.2
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if type(layer) is nn.LeakyReLU and layer.negative_slope > 0:
            return inside, "leaky_relu", layer.negative_slope
        if type(layer) is nn.ELU and layer.alpha == 1:
            return inside, "elu", 0.2
        if type(layer) in LAYERS:
            return inside, LAYERS[type(layer)], 0.2
        # Another activation; of layers with parameters, such as convolutions, the output itself is the feature half.
        return (inside, None, 0.2) if not any(True for _ in layer.parameters()) else (node, "identity", 0.2)
    if node.target is F.leaky_relu and (slope := _argument(node, 1, "negative_slope", 0.01)) > 0:
        return inside, "leaky_relu", slope
    if node.target is F.elu and _argument(node, 1, "alpha", 1.0) == 1:
        return inside, "elu", 0.2
    if node.target in POINTWISE:
        return inside, POINTWISE[node.target], 0.2
    return node, "identity", 0.2


def _half(node: fx.Node, module: nn.Module) -> _Half | str | None:
    """Which half of whose channels a node is; a reason where it is a part and maybe no half; None where it is none."""
    if node.target is not operator.getitem:
        return None
    whole, index = node.args
    if not isinstance(whole, fx.Node):
        return None
    if isinstance(index, tuple):
        return _half_of_slices(node, whole, index, module)
    source = whole.args[0] if whole.args else None
    if not isinstance(index, int) or index not in (0, 1) or not isinstance(source, fx.Node):
        return None
    if whole.target in (torch.chunk, "chunk"):
        fits = _argument(whole, 1, "chunks", None) == 2 and _argument(whole, 2, "dim", 0) in (1, -3)
        return _Half(source, index, {node, whole}) if fits else "it does not cut its channels in two halves"
    if whole.target in (torch.split, "split"):
        size = whole.args[1] if len(whole.args) > 1 else next(iter(whole.kwargs.values()), None)
        size = size[0] if isinstance(size, tuple | list) and len(size) == 2 and size[0] == size[1] else size
        sizes = _nodes_of_half(size, source, module)
        if sizes is None or _argument(whole, 2, "dim", 0) not in (1, -3):
            return "it cannot be told whether it cuts its channels in two halves"
        return _Half(source, index, {node, whole} | sizes)
    return None


def _half_of_slices(node: fx.Node, source: fx.Node, index: tuple[Any, ...], module: nn.Module) -> _Half | str | None:
    everything = slice(None, None, None)
    if len(index) < 2 or not all(isinstance(each, slice) for each in index[:2]) or index[0] != everything:
        return None
    if any(each not in (everything, Ellipsis) for each in index[2:]) or index[1].step is not None:
        return None
    start, stop = index[1].start, index[1].stop
    place = 0 if start in (None, 0) else 1
    sizes = _nodes_of_half(stop if place == 0 else start, source, module)
    if sizes is None or (place == 1 and stop is not None):
        return "it cannot be told whether it cuts its channels in two halves"
    return _Half(source, place, {node} | sizes)


def _nodes_of_half(size: Any, source: fx.Node, module: nn.Module) -> set[fx.Node] | None:
    """The nodes that compute half the channels of `source`; None where it cannot be told that `size` is that."""
    if isinstance(size, int):
        layer = module.get_submodule(str(source.target)) if source.op == "call_module" else None
        channels = next(
            (getattr(layer, name) for name in ("out_channels", "num_features", "num_channels") if hasattr(layer, name)),
            None,
        )
        return set() if channels == 2 * size else None
    if not isinstance(size, fx.Node) or size.target is not operator.floordiv or size.args[1] != 2:
        return None
    channels = size.args[0]
    if not isinstance(channels, fx.Node):
        return None
    if channels.target == "size" and channels.args == (source, 1):
        return {size, channels}
    if channels.target is operator.getitem and channels.args[1] == 1 and isinstance(channels.args[0], fx.Node):
        shape = channels.args[0]
        if (shape.target is getattr and shape.args == (source, "shape")) or (
            shape.target == "size" and shape.args == (source,)
        ):
            return {size, channels, shape}
    return None
