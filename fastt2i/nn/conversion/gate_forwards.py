"""Gates that are written out in a module's own `forward`: found in its torch.fx graph, and replaced in it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fastt2i import ops
from fastt2i.nn.conv_parameters import check_convs
from fastt2i.nn.conversion.gate_patterns import GatePattern, find_gates
from fastt2i.nn.conversion.glu_layers import doubles, mentions_gate, merged
from fastt2i.nn.gated_conv import Gate, GatedConv2d, UpsampleGatedConv2d


class Left(Exception):
    """Why a forward is left as it is, as the end of a sentence."""


def fuse_forward(module: nn.Module, shared: set[int]) -> Counter[str]:
    """Replace the gates in a module's forward; returns the kinds that were put in.

    Args:
        module: of a class of the user's; changed in place.
        shared: ids of modules that stand elsewhere too, and are not merged.

    Raises:
        Left: there is, or may be, a gate in it that is not replaced.
    """
    if not (mentions_gate(module) or any(isinstance(child, Gate | nn.Sigmoid) for child in module.children())):
        return Counter()
    graph = _trace(module)
    patterns, reasons = find_gates(graph, module)
    done: Counter[str] = Counter()
    for pattern in patterns:
        done.update(_replace(pattern, graph, module, shared))
    if done:
        _put_in(_function(graph), module)
    if reasons:
        raise Left(reasons[0])
    return done


def _put_in(forward: FunctionType, module: nn.Module) -> None:
    """Give one module a forward of its own, by a subclass of its class: who converts again, replicates or copies the
    module finds what it computes, where a forward among its attributes would stand beside that of its class."""
    own = type(module)

    class Fused(own):  # type: ignore[valid-type, misc]
        def __deepcopy__(self, memo: dict[int, Any]) -> Fused:
            new, arguments, state, *_ = super().__reduce_ex__(2)
            memo[id(self)] = copied = new(*arguments)
            copied.__setstate__(copy.deepcopy(state, memo))
            return copied

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError("a converted model is not pickled; save its state_dict, and convert the one that loads it")

    Fused.__name__, Fused.__qualname__, Fused.__doc__ = own.__name__, own.__qualname__, own.__doc__
    Fused.forward = forward
    module.__class__ = Fused


def _trace(module: nn.Module) -> fx.Graph:
    """The graph of its own forward, in which its children are calls; the same in training and evaluation."""
    floats: set[str] = set()
    own = type(module)

    class Recorder(own):  # type: ignore[valid-type, misc]
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if isinstance(value, float):
                floats.add(name)
            return value

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    was_training, before = module.training, dict(vars(module))
    graphs = []
    try:
        module.__class__ = Recorder
        for training in (True, False):
            module.training = training
            graphs.append(Tracer().trace(module))
    except Exception as error:  # tracing raises what the user's code makes of values that are not there
        reason = (str(error).splitlines() or [""])[0][:120]
        raise Left(f"its forward cannot be traced ({type(error).__name__}: {reason})") from error
    finally:
        module.__class__ = own
        module.training = was_training
        after = dict(vars(module))
        module.__dict__.clear()
        module.__dict__.update(before)
    own_state = (name for name in after if name != "training" and not name.startswith("_tensor_constant"))
    if any(after[name] is not before.get(name) for name in own_state):
        raise Left("its forward changes what the module holds")
    if any(node.op == "get_attr" and "_tensor_constant" in str(node.target) for node in graphs[0].nodes):
        raise Left("its forward makes a tensor, which may be another one each time")
    if str(graphs[0]) != str(graphs[1]):
        raise Left("its forward differs between training and evaluation")
    if floats:
        raise Left(f"its forward reads {sorted(floats)[0]}, a number that may change")
    return graphs[0]


def _function(graph: fx.Graph) -> FunctionType:
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    return names["forward"]


def _replace(pattern: GatePattern, graph: fx.Graph, module: nn.Module, shared: set[int]) -> Counter[str]:
    if pattern.gate_conv is not None:
        return _merge_pair(pattern, graph, module, shared)
    source, activation, slope = pattern.source, pattern.activation, pattern.slope
    layer = None
    if source.op == "call_module" and _only_use(source, graph, pattern):
        conv = module.get_submodule(str(source.target))
        if id(conv) not in shared:
            layer = merged(conv, activation, slope, after=_upsampling_before(source, module))
    if layer is not None:
        module.set_submodule(str(source.target), layer)
        if isinstance(layer, UpsampleGatedConv2d):
            source.args = (source.args[0].args[0],)  # type: ignore[union-attr]
        pattern.erase(graph, by=source)
        return Counter({type(layer).__name__: 1, "Gate": -1 if pattern.is_layer else 0})
    if pattern.is_layer:
        return Counter()
    with graph.inserting_before(pattern.product):
        fused = graph.call_function(ops.gate, (source,), {"activation": activation, "negative_slope": slope})
    pattern.erase(graph, by=fused)
    return Counter({"gate in a forward": 1})


def _merge_pair(pattern: GatePattern, graph: fx.Graph, module: nn.Module, shared: set[int]) -> Counter[str]:
    """Two convolutions of one tensor become one, in the place of the first."""
    assert pattern.gate_conv is not None
    feature, gate = (module.get_submodule(str(node.target)) for node in (pattern.source, pattern.gate_conv))
    assert isinstance(feature, nn.Conv2d) and isinstance(gate, nn.Conv2d)
    used_once = all(_only_use(node, graph, pattern) for node in (pattern.source, pattern.gate_conv))
    if not used_once or shared & {id(feature), id(gate)}:
        raise Left("its convolutions are used elsewhere too")
    try:
        check_convs(feature, gate)
    except (TypeError, ValueError) as error:
        raise Left(f"its convolutions are not one ({str(error).removeprefix('from_conv: ')})") from error
    layer = GatedConv2d.from_conv(feature, gate, activation=pattern.activation, negative_slope=pattern.slope)
    module.set_submodule(str(pattern.source.target), layer)
    module.set_submodule(str(pattern.gate_conv.target), nn.Identity())
    pattern.erase(graph, by=pattern.source)
    return Counter({"GatedConv2d": 1})


def _only_use(node: fx.Node, graph: fx.Graph, pattern: GatePattern) -> bool:
    """Whether a layer is called here alone, for nothing but the gate."""
    calls = [other for other in graph.nodes if other.op == "call_module" and other.target == node.target]
    return calls == [node] and all(user in pattern.nodes for user in node.users)


def _upsampling_before(conv: fx.Node, module: nn.Module) -> nn.Module | None:
    """The 2x upsampling whose output a convolution alone reads, as a layer."""
    before = conv.args[0] if conv.args else None
    if not isinstance(before, fx.Node) or list(before.users) != [conv] or not before.args:
        return None
    if before.op == "call_module":
        layer = module.get_submodule(str(before.target))
        return layer if doubles(layer) else None
    target: Callable[..., Any] | str = before.target
    if target is not F.interpolate or len(before.args) != 1:
        return None
    options = {name: value for name, value in before.kwargs.items() if value is not None}
    if options.pop("mode", "nearest") != "nearest" or options.pop("scale_factor", None) not in (2, (2, 2)):
        return None
    return nn.Upsample(scale_factor=2) if not any(options.values()) else None
