"""Plain convolutions that absorb the batch norm behind them (law ``norm_after``), found along the data flow.

The order in which modules are registered says nothing about what reads what: only a trace of ``forward`` does.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .kernel import exact, read, read_norm
from .laws import norm_after
from .plain_layers import behind, has_hooks, is_convolution, is_norm, with_kernel
from .surgery import replaced, sealed, skeleton

Pairs = dict[nn.Module, nn.Module]  # norm -> convolution


def fold_pairs(model: nn.Module, *, ours: Callable[[nn.Module], bool]) -> tuple[nn.Module, tuple[str, ...]]:
    """A model whose plain convolutions have absorbed the batch norms that are their only readers.

    Each ``forward`` is traced with ``torch.fx``: the whole model, or else the largest parts that can be traced. Where
    only parts can, what the code around them does with their convolutions is not seen.

    Args:
        model: never changed. Modules in training mode are not traced.
        ours: modules that fuse by themselves and are not looked into; their children are.

    Returns:
        The model, which shares the rest with ``model``, and the names of the convolutions.
    """
    search = _Search(model, ours)
    search.enter(model)
    new: dict[nn.Module, nn.Module] = {}
    for norm, conv in search.pairs.items():
        kernel = norm_after(read(exact(cast(_ConvNd, conv))), read_norm(exact(norm)))
        new[conv] = with_kernel(conv, kernel)
        new[norm] = cast(nn.Module, behind(norm)).train(norm.training)
    names: list[str] = []

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if module in new and isinstance(module, _ConvNd):
            names.append(name)
        return new.get(module)

    return replaced(model, replacement), tuple(names)


class _Search:
    """Collects pairs from the largest parts of a model that can be traced."""

    def __init__(self, model: nn.Module, ours: Callable[[nn.Module], bool]) -> None:
        self.pairs: Pairs = {}
        self._ours = ours
        self._uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self._entered: set[nn.Module] = set()

    def visit(self, scope: nn.Module) -> bool:
        """Add the pairs of a scope; whether a trace can go through the scope's ``forward``."""
        reached = list(self._reached(scope, ()))
        for inner in reached[1:]:
            if self._is_leaf(inner):
                self.enter(inner)
        if self._is_wall(scope):
            return True  # a leaf of every trace
        if not any(map(is_convolution, reached)) or not any(map(is_norm, reached)):
            return False
        if self._add(scope, ()):
            return True
        opaque = [child for child in _children(scope) if not self.visit(child) and not _traced(child, self._is_leaf)]
        if opaque:
            self._add(scope, opaque)
        return False

    def enter(self, leaf: nn.Module) -> None:
        """Visit what a trace around it does not show."""
        if leaf not in self._entered and not sealed(leaf):
            self._entered.add(leaf)
            if not self._is_wall(leaf):
                self.visit(leaf)
                return
            for child in _children(leaf):
                (self.enter if self._is_wall(child) else self.visit)(child)

    def _add(self, scope: nn.Module, opaque: Collection[nn.Module]) -> bool:
        graphs = _traced(scope, lambda module: module in opaque or self._is_leaf(module))
        if not graphs:
            return False
        modules = dict(scope.named_modules(remove_duplicate=False))
        here = Counter(self._reached(scope, opaque))
        called = {modules[cast(str, node.target)] for node in graphs[0].nodes if node.op == 'call_module'}
        # the wider scope knows better
        self.pairs = {norm: conv for norm, conv in self.pairs.items() if not {norm, conv} & called}
        first, *others = (_pairs(graph, modules) for graph in graphs)
        for norm, conv in first.items():
            seen_everywhere = all(here[module] == self._uses[module] for module in (norm, conv))
            if seen_everywhere and all(other.get(norm) is conv for other in others):
                self.pairs[norm] = conv
        return True

    def _reached(self, scope: nn.Module, opaque: Collection[nn.Module]) -> Iterator[nn.Module]:
        """The modules that a trace of a scope goes through or stops at, once for each name."""
        yield scope
        for child in scope._modules.values() if not self._is_wall(scope) else ():
            if child is not None and (self._is_leaf(child) or child in opaque):
                yield child
            elif child is not None:
                yield from self._reached(child, opaque)

    def _is_leaf(self, module: nn.Module) -> bool:
        # hooks may keep what passes by; of the root of a trace, they are not called
        return self._is_wall(module) or has_hooks(module)

    def _is_wall(self, module: nn.Module) -> bool:
        """Whether a trace may not look into a module: it is ours, a wrapper, or PyTorch's own (a leaf for torch.fx)."""
        if self._ours(module) or sealed(module):
            return True
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            return True
        container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or type(module) is nn.Module
        return type(module).__module__.startswith('torch.nn') and not container and bool(module._modules)


def _children(scope: nn.Module) -> Iterator[nn.Module]:
    for child in scope.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or type(child) is nn.Module:  # they have no forward
            yield from _children(child)
        else:
            yield child


class _Tracer(fx.Tracer):
    """A tracer that calls ``forward`` with or without its optional arguments."""

    proxy_buffer_attributes = True  # reading a norm's statistics counts as reading the norm

    def __init__(self, leaves: Collection[nn.Module], *, optional: bool) -> None:
        super().__init__()
        self._leaves = leaves
        self._optional = optional
        self.took_all = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = m in self._leaves or isinstance(m, _BatchNorm | _ConvNd)
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        args: list[Any] = [self.root]
        keywords: dict[str, Any] = {}
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            if parameter.kind is parameter.VAR_POSITIONAL:
                raise TypeError(f'cannot tell how many arguments *{parameter.name} are')
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.default is not parameter.empty and not self._optional:
                self.took_all = False
                continue
            proxy = self.create_proxy('placeholder', parameter.name, (), {})
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[parameter.name] = proxy
            else:
                args.append(proxy)
        return (lambda *given: root_fn(*given, **keywords)), args


def _traced(scope: nn.Module, leaf: Callable[[nn.Module], bool]) -> list[fx.Graph]:
    """Graphs of a scope without and with its optional arguments; none when it cannot be traced without."""
    graphs: list[fx.Graph] = []
    if scope.training or 'forward' in vars(scope):  # torch.fx would trace the class's forward instead
        return graphs
    for optional in (False, True):
        clone, clones = skeleton(scope)
        tracer = _Tracer({new for old, new in clones.items() if old is not scope and leaf(old)}, optional=optional)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                graphs.append(tracer.trace(clone))
        except Exception:  # whatever foreign code raises when its input is no tensor
            break
        if tracer.took_all:
            break
    return graphs


def _pairs(graph: fx.Graph, modules: dict[str, nn.Module]) -> Pairs:
    """The pairs of which every call of the one is read by a call of the other, and by nothing else."""
    calls: dict[nn.Module, list[fx.Node]] = defaultdict(list)
    looked_into: set[nn.Module | None] = set()  # somebody uses their weights directly
    for node in graph.nodes:
        if node.op == 'call_module':
            calls[modules[cast(str, node.target)]].append(node)
        elif node.op == 'get_attr':
            looked_into.add(modules.get(cast(str, node.target).rpartition('.')[0]))
    pairs: Pairs = {}
    for norm, readers in calls.items():
        sources = [reader.args[0] if reader.args and not reader.kwargs else None for reader in readers]
        convs = {
            modules[cast(str, source.target)] if isinstance(source, fx.Node) and source.op == 'call_module' else None
            for source in sources
        }
        conv = convs.pop()
        if conv is None or convs or not is_norm(norm) or not is_convolution(conv):
            continue
        alone = len(calls[conv]) == len(readers) and all(len(cast(fx.Node, source).users) == 1 for source in sources)
        if alone and not {norm, conv} & looked_into and norm.num_features == conv.out_channels:
            pairs[norm] = conv
    return pairs
