"""Convolutions and linear layers that absorb the batch norms around them, found along the data flow.

The order in which modules are registered says nothing about what reads what: only following ``forward`` does, on every
way through it. A norm folds back into the layers that it alone reads (laws ``norm_after``, ``split``, ``norm_of_sum``),
or forward into those that alone read it (law ``norm_before``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from repnext_mm.reparam.data_flow import Node, Way, optional_arguments, ways_through
from repnext_mm.reparam.fusible import Fusible
from repnext_mm.reparam.kernel import Affine, Kernel, affine_of, as_float64, is_frozen, kernel_of
from repnext_mm.reparam.laws import norm_after, norm_after_transposed, norm_before, norm_of_sum, split
from repnext_mm.reparam.plain_layers import (
    OfDimension,
    averages,
    axes,
    behind,
    channels,
    features,
    is_linear_map,
    is_norm,
    on_the_instance,
    passes_through,
    sees_no_border,
    with_kernel,
)
from repnext_mm.reparam.reached_by_code import Names, may_give, methods_with, reaches
from repnext_mm.reparam.surgery import anchored, replaced, sealed
from repnext_mm.reparam.unchanged import state_kept
from repnext_mm.reparam.verify import all_within, relative_error

TOLERANCE = 1e-5  # relative. Checks run in float64, but a module may compute in float32 inside

HELPERS_DEPTH = 3
"""Above this depth, people call the methods of a part that its ``forward`` calls, too: ``model.backbone.stem(x)``."""

_Ways = tuple[Way, ...] | None
Tree = tuple[Any, ...]  # what a norm reads: ('layer', LAYER), or 'cat' or 'sum' and the trees of its parts


class Fold(NamedTuple):
    """A norm and the layers that can absorb it."""

    norm: nn.Module
    law: str  # 'after' the layers of ``tree``, or 'before' each of ``layers``
    layers: tuple[nn.Module, ...]
    tree: Tree = ()


class Folded(NamedTuple):
    """What became of a model."""

    model: nn.Module
    names: tuple[str, ...]  # of the layers that have absorbed a norm
    refused: tuple[str, ...]  # norms that were left as they are, and why


def fold_pairs(
    model: nn.Module,
    *,
    stay: Mapping[nn.Module, str] = MappingProxyType({}),
    probe: Tensor | None = None,
) -> Folded:
    """A model whose layers have absorbed the batch norms around them.

    Each ``forward`` is followed on all ways through it: that of the whole model, or else of the largest parts where
    that is possible. Norms that other code may use in another way stay. A ``Fusible`` fuses by itself and is not looked
    into; its children are.

    Args:
        model: never changed. Modules in training mode are not followed.
        stay: modules that are left as they are with their parts, beside those that ``anchored`` finds.
        probe: an input of the model. With it, the result is checked, and norms whose folding changes it stay.
    """
    folded = _folded(model, stay, frozenset())
    if probe is None or folded.model is model or _agree(folded.model, model, probe):
        return folded
    names = {module: name for name, module in model.named_modules()}
    wrong: set[nn.Module] = set()
    groups: dict[str, set[nn.Module]] = defaultdict(set)
    for norm in _norms(model):
        groups[names[norm].rpartition('.')[0]].add(norm)
    for norms in groups.values():
        alone = _folded(model, stay, frozenset(_norms(model) - norms))
        if alone.model is not model and not _agree(alone.model, model, probe):
            wrong |= norms
    folded = _folded(model, stay, frozenset(wrong))
    if folded.model is not model and not _agree(folded.model, model, probe):
        wrong, folded = _norms(model), Folded(model, (), ())
    reasons = [f'{names[norm]}: folding it changes the output' for norm in names if norm in wrong]
    return folded._replace(refused=(*folded.refused, *reasons))


def _folded(
    model: nn.Module,
    stay: Mapping[nn.Module, str],
    kept: frozenset[nn.Module],
) -> Folded:
    names: dict[str, None] = {}
    while True:  # each round may leave two more layers next to each other
        search = _Search(model, stay, kept)
        if _norms(model):
            search.enter(model)
        folds = search.chosen()
        if not folds:
            return Folded(model, tuple(names), search.refusals())
        new: dict[nn.Module, nn.Module] = {}
        for fold in folds:
            new |= _absorbed(fold)

        def replacement(name: str, module: nn.Module, new: Mapping[nn.Module, nn.Module] = new) -> nn.Module | None:
            if module in new and is_linear_map(module):
                names.setdefault(name)
            return new.get(module)

        model = replaced(model, replacement, left=search.anchored)


def _absorbed(fold: Fold) -> dict[nn.Module, nn.Module]:
    """What stands for the norm and the layers of a fold."""
    affine = affine_of(as_float64(fold.norm))
    new: dict[nn.Module, nn.Module] = {}
    if fold.law == 'after':
        for layer, own in _parts(fold.tree, affine):
            new[layer] = with_kernel(layer, kernel_with_norm(layer, own))
    else:
        for layer in fold.layers:
            kernel = norm_before(affine, kernel_of(as_float64(cast(_ConvNd, layer))), unpadded=True)
            new[layer] = with_kernel(layer, kernel)
    left = [cast(nn.Module, behind(fold.norm))]
    if axes(fold.layers[0]) < 2:  # norms of these take inputs of another dimension too
        left.insert(0, OfDimension(axes(fold.layers[0]) + 2))
    left = [layer for layer in left if type(layer) is not nn.Identity] or left
    new[fold.norm] = (left[0] if len(left) == 1 else nn.Sequential(*left)).train(fold.norm.training)
    return new


def kernel_with_norm(layer: nn.Module, norm: Affine) -> Kernel:
    """The kernel of a layer with the norm after it, in float64."""
    kernel = kernel_of(as_float64(cast(_ConvNd, layer)))
    if isinstance(layer, _ConvTransposeNd):
        new = norm_after_transposed(kernel, norm, groups=layer.groups)
    else:
        new = norm_after(kernel, norm)
    unmoved = kernel.bias is None and not norm.shift.is_meta and not norm.shift.any()
    return Kernel(new.weight, None) if unmoved else new


def _parts(tree: Tree, norm: Affine) -> Iterator[tuple[nn.Module, Affine]]:
    """The layers that a norm reads, and the norm that each of them absorbs."""
    kind, *parts = tree
    if kind == 'layer':
        yield parts[0], norm
        return
    norms = split(norm, *map(_width, parts)) if kind == 'cat' else norm_of_sum(norm, len(parts))
    for part, own in zip(parts, norms, strict=True):
        yield from _parts(part, own)


def _width(tree: Tree) -> int:
    kind, *parts = tree
    if kind == 'layer':
        return channels(parts[0])
    return sum(map(_width, parts)) if kind == 'cat' else _width(parts[0])


def _leaves(tree: Tree) -> list[nn.Module]:
    kind, *parts = tree
    return [parts[0]] if kind == 'layer' else [layer for part in parts for layer in _leaves(part)]


def _agree(folded: nn.Module, model: nn.Module, probe: Tensor) -> bool:
    try:
        pair, x = [as_float64(folded), as_float64(model)], probe.to('cpu', torch.float64)
    except Exception:  # what cannot be copied is compared as it is
        pair, x = [folded, model], probe
    with state_kept(model):
        expected = relative_error(pair[1], pair[1], x)
        try:
            errors = relative_error(pair[0], pair[1], x)
        except Exception:  # whatever code raises where something is missing
            return False
    if not all_within(expected, 0.0):
        return True  # NaN, chance: nothing can be compared
    return all_within(errors, TOLERANCE if x.dtype == torch.float64 else 1e-2)


def _norms(model: nn.Module) -> set[nn.Module]:
    return {module for module in model.modules() if is_norm(module)}


class _Search:
    """Collects folds from the largest parts of a model that can be followed."""

    def __init__(
        self,
        model: nn.Module,
        stay: Mapping[nn.Module, str],
        kept: frozenset[nn.Module],
    ) -> None:
        self.anchored = anchored(model) | dict(stay)
        self._model, self._kept = model, kept
        self._folds: dict[nn.Module, Fold] = {}
        self._refused: dict[nn.Module, str] = {}
        self._uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self._depths = {module: len(name.split('.')) if name else 0 for name, module in model.named_modules()}
        self._entered: set[nn.Module] = set()
        self._unseen: dict[nn.Module, str] = {}  # what code may reach into
        self._known: dict[tuple[nn.Module, str, frozenset[str]], _Ways] = {}
        self._callers: list[nn.Module] = []  # whose code could not be followed

    def chosen(self) -> list[Fold]:
        """The folds to do in one round: no two share a layer, and those that fold back come first."""
        self._refuse_what_others_use()
        taken: set[nn.Module] = set()
        result = []
        for fold in sorted(self._folds.values(), key=lambda fold: fold.law == 'before'):
            members = {fold.norm, *fold.layers}
            if fold.norm not in self._refused and not members & taken:
                taken |= members
                result.append(fold)
        return result

    def refusals(self) -> tuple[str, ...]:
        """The norms that could be folded if it were not for the reason given."""
        names = {module: name for name, module in self._model.named_modules()}
        return tuple(f'{names[norm]}: {self._refused[norm]}' for norm in names if norm in self._refused)

    def visit(self, scope: nn.Module) -> bool:
        """Add the folds of a scope; whether one can follow its ``forward``."""
        reached = list(self._reached(scope, ()))
        for inner in reached[1:]:
            if self._is_leaf(inner):
                self.enter(inner)
        if self._is_wall(scope):
            return True  # a leaf wherever it is called
        if not any(map(is_linear_map, reached)) or not any(map(is_norm, reached)):
            return False
        if self._add(scope, ()):
            return True
        opaque = [child for child in _children(scope) if not self._is_wall(child) and self._ways(child) is None]
        if opaque and self._add(scope, opaque):
            for child in opaque:
                self.visit(child)
            return False
        self._unseen.setdefault(scope, '')
        self._callers.append(scope)
        for child in _children(scope):
            self.visit(child)
        self._callers.pop()
        return False

    def enter(self, leaf: nn.Module) -> None:
        """Visit what following the code around it does not show."""
        if leaf not in self._entered and not sealed(leaf):
            self._entered.add(leaf)
            if not self._is_wall(leaf):
                self.visit(leaf)
                return
            for child in _children(leaf):
                (self.enter if self._is_wall(child) else self.visit)(child)

    def _ways(
        self, scope: nn.Module, opaque: Collection[nn.Module] = (), method: str = 'forward', defaults_only: bool = False
    ) -> _Ways:
        if scope.training or 'forward' in vars(scope):  # the class's forward says nothing then
            return None
        not_given = optional_arguments(scope, method) if defaults_only else self._not_given(scope)
        key = (scope, method, not_given)
        if opaque or key not in self._known:
            self._known[key] = ways_through(
                scope, lambda module: module in opaque or self._is_leaf(module), method=method, not_given=not_given
            )
        return self._known[key] if not opaque else self._known.pop(key)

    def _not_given(self, scope: nn.Module) -> frozenset[str]:
        """Optional arguments that the code around a scope does not give."""
        optional = optional_arguments(scope, 'forward') if self._callers else frozenset[str]()
        return optional.difference(*(may_give(type(caller), optional) for caller in self._callers))

    def _add(self, scope: nn.Module, opaque: Collection[nn.Module]) -> bool:
        ways = self._ways(scope, opaque)
        if ways is None:
            return False
        here = Counter(self._reached(scope, opaque))
        called = {node.target for way in ways for node in way.nodes if node.op == 'layer'}
        # what is found in the enclosing module overrides what was found in its parts
        self._folds = {norm: fold for norm, fold in self._folds.items() if not {norm, *fold.layers} & called}
        self._refused = {norm: reason for norm, reason in self._refused.items() if norm not in called}
        own = [_folds_on(way) for way in ways]
        for norm, fold in {norm: fold for folds in own for norm, fold in folds.items()}.items():
            if all(here[module] == self._uses[module] for module in (norm, *fold.layers)) and norm not in self._kept:
                self._folds[norm] = fold
                if reason := _objection(fold, ways, own):
                    self._refused[norm] = reason
        for way in ways:
            for module, attributes in way.read.items():
                if module._modules and any(not _is_harmless(module, name) for name in attributes):
                    self._unseen[module] = f'{type(scope).__name__} looks into {type(module).__name__}'
        self._ask_other_methods(scope, opaque)
        return True

    def _ask_other_methods(self, scope: nn.Module, opaque: Collection[nn.Module]) -> None:
        """Refuse folds where a method other than ``forward`` uses the parts in another way."""
        for holder in dict.fromkeys(self._reached(scope, opaque)):
            if holder in opaque or self._is_leaf(holder) or not holder._modules:
                continue
            names = {module: name.split('.') for name, module in holder.named_modules()}
            inside = [fold for fold in self._folds.values() if {fold.norm, *fold.layers} <= names.keys()]
            firsts = frozenset(names[module][0] for fold in inside for module in (fold.norm, *fold.layers))
            helpers = self._depths[holder] < HELPERS_DEPTH
            for method, used in methods_with(type(holder), firsts, helpers=helpers) if inside else ():
                ways = self._ways(holder, opaque, method) or self._ways(holder, opaque, method, defaults_only=True)
                own = [_folds_on(way) for way in ways or ()]
                for fold in inside:
                    if ways is not None:
                        differs = bool(_objection(fold, ways, own))
                    else:
                        differs = _used_apart(names[fold.norm], [names[layer] for layer in fold.layers], used)
                    if differs:
                        name = f'{type(holder).__name__}.{method}()'
                        self._refused.setdefault(fold.norm, f'{name} does not use it as forward() does')

    def _refuse_what_others_use(self) -> None:
        """Refuse folds of what is more than its class says, or what code may reach that could not be followed."""
        left = {inner: reason for module, reason in self.anchored.items() for inner in module.modules()}
        inside = {module: dict(_paths(module)) for module in self._unseen}
        for norm, fold in self._folds.items():
            for module in (norm, *fold.layers):
                for reason in filter(None, (on_the_instance(module), left.get(module))):
                    self._refused[norm] = reason
                for scope, why in self._unseen.items():
                    if module in inside[scope] and (why or reaches(type(scope), inside[scope][module])):
                        self._refused.setdefault(norm, why or f'{type(scope).__name__} may use it in another way')

    def _reached(self, scope: nn.Module, opaque: Collection[nn.Module]) -> Iterator[nn.Module]:
        """The modules that following a scope goes through or stops at, once for each name."""
        yield scope
        for child in scope._modules.values() if not self._is_wall(scope) else ():
            if child is not None and (self._is_leaf(child) or child in opaque):
                yield child
            elif child is not None:
                yield from self._reached(child, opaque)

    def _is_leaf(self, module: nn.Module) -> bool:
        # hooks may keep what passes by; those of the scope itself are not called
        return self._is_wall(module) or bool(on_the_instance(module)) or module in self.anchored

    def _is_wall(self, module: nn.Module) -> bool:
        """Whether one may not look into a module: it fuses by itself, or is a wrapper or a layer."""
        if isinstance(module, Fusible) or sealed(module):
            return True
        if is_linear_map(module) or is_norm(module) or passes_through(module):
            return True
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            return True
        container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or type(module) is nn.Module
        return type(module).__module__.startswith('torch.nn') and not container


def _children(scope: nn.Module) -> Iterator[nn.Module]:
    for child in scope.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or type(child) is nn.Module:  # they have no forward
            yield from _children(child)
        else:
            yield child


def _paths(scope: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    for name, module in scope.named_modules():
        if name:
            yield module, name.split('.')


def _objection(fold: Fold, ways: Collection[Way], own: Collection[Mapping[nn.Module, Fold]]) -> str:
    """Why a fold that is right on one way is not on all of them; empty where it is."""
    for way, folds in zip(ways, own, strict=True):
        called = {node.target for node in way.nodes if node.op == 'layer'}
        members = (fold.norm, *fold.layers)
        if folds.get(fold.norm) != fold and called & set(members):
            return 'forward() has ways through it that use it differently'
        for module in members:
            for name in sorted(way.read.get(module, ())):
                if not _is_harmless(module, name):
                    return f'other code reads {name} of {"the norm" if module is fold.norm else "its layer"}'
    return ''


def _is_harmless(module: nn.Module, name: str) -> bool:
    """Whether an attribute of a layer is the same after folding."""
    if name == 'training':
        return True
    if not is_linear_map(module):
        return False
    if name == '__class__':
        return 'parametrizations' not in module._modules
    own = vars(module).get(name, getattr(type(module), name, None))
    return name not in ('weight', 'bias') and own is not None and not callable(own)


def _used_apart(norm: list[str], layers: list[list[str]], used: Names) -> bool:
    """Whether a method that cannot be followed may use some members of a fold without the others."""
    reached = used.called | used.taken
    own = [path[0] in reached for path in layers if len(path) == 1]  # a folded layer has the class and sizes it had
    if len(norm) == 1:
        own.append(norm[0] in reached | used.looked_at)
    if 0 < sum(own) < len(layers) + 1:
        return True
    return any(len(path) == 2 and path[0] in used.taken for path in (norm, *layers))


def _folds_on(way: Way) -> dict[nn.Module, Fold]:
    """The norms that can be folded as far as one way through the code goes."""
    calls: dict[nn.Module, list[Node]] = defaultdict(list)
    for node in way.nodes:
        if node.op == 'layer':
            calls[node.target].append(node)
    folds: dict[nn.Module, Fold] = {}
    for norm, readings in calls.items():
        if not is_norm(norm):
            continue
        trees = {_tree(_only_input(reading), norm) for reading in readings}
        tree = trees.pop()
        fold = _after(norm, tree, calls) if tree is not None and not trees else None
        fold = fold or _before(norm, readings, calls)
        if fold is not None:
            folds[norm] = fold
    return folds


def _after(norm: nn.Module, tree: Tree, calls: Mapping[nn.Module, list[Node]]) -> Fold | None:
    layers = _leaves(tree)
    if len(set(layers)) < len(layers) or any(len(calls[layer]) != len(calls[norm]) for layer in layers):
        return None
    if len({axes(layer) for layer in layers}) > 1 or not _fits(norm, axes(layers[0])):
        return None
    return Fold(norm, 'after', tuple(layers), tree) if _width(tree) == features(norm) and _even(tree) else None


def _before(norm: nn.Module, readings: list[Node], calls: Mapping[nn.Module, list[Node]]) -> Fold | None:
    if not isinstance(behind(norm), nn.Identity):
        return None
    layers: dict[nn.Module, int] = defaultdict(int)
    for reading in readings:
        if reading.outlives:
            return None
        readers = list(_readers(reading))
        if not readers or None in readers:
            return None
        for reader in readers:
            layers[cast(Node, reader).target] += 1
    if any(len(calls[layer]) != count or count != len(readings) for layer, count in layers.items()):
        return None
    for layer in layers:
        inputs = layer.in_features if isinstance(layer, nn.Linear) else cast(_ConvNd, layer).in_channels
        if not sees_no_border(layer) or inputs != features(norm) or not _fits(norm, axes(layer)):
            return None
    return Fold(norm, 'before', tuple(layers)) if len({axes(layer) for layer in layers}) == 1 else None


def _readers(node: Node) -> Iterator[Node | None]:
    """The calls of layers that read what a node returns, None where something else does."""
    for reader in node.readers:
        if reader.op != 'layer' or _only_input(reader) is not node:
            yield None
        elif passes_through(reader.target) or averages(reader.target):
            yield from _readers(reader) if not reader.outlives else [None]
        else:
            yield reader if is_linear_map(reader.target) else None


def _tree(node: Node | None, norm: nn.Module) -> Tree | None:
    """What a norm reads, if all of that are layers which nothing else reads."""
    if node is None or node.outlives or len(node.readers) != 1:
        return None
    if node.op == 'layer' and is_linear_map(node.target):
        return ('layer', node.target)
    if node.op == 'layer' and (passes_through(node.target) or averages(node.target)):
        return _tree(_only_input(node), norm)
    kind = 'sum'
    parts: tuple[Any, ...] = ()
    if node.op == 'function' and node.target in _STACKING:
        kind, parts = 'cat', _stacked(node, norm)
    elif not node.kwargs and (node.op, node.target) in _ADDING:
        parts = node.args
    if not parts or not all(isinstance(part, Node) for part in parts):
        return None
    trees = [_tree(part, norm) for part in parts]
    return (kind, *trees) if None not in trees else None


_STACKING = tuple(getattr(torch, name) for name in ('cat', 'concat', 'concatenate') if hasattr(torch, name))
_ADDING = (
    ('function', torch.add),
    ('function', torch.Tensor.add),
    *(('method', name) for name in ('__add__', '__iadd__', '__radd__')),
)


def _stacked(node: Node, norm: nn.Module) -> tuple[Any, ...]:
    """The parts of a concatenation along the channels."""
    given = dict(zip(('tensors', 'dim'), node.args, strict=False)) | node.kwargs
    known = isinstance(norm, nn.BatchNorm2d) or is_frozen(norm), isinstance(norm, nn.BatchNorm3d)
    channel = (1, *(1 - dimensions for dimensions, it in zip((4, 5), known, strict=True) if it))
    parts = given.get('tensors')
    return parts if given.get('dim', given.get('axis', 0)) in channel and isinstance(parts, tuple) else ()


def _even(tree: Tree) -> bool:
    """Whether all summands have the same channels."""
    kind, *parts = tree
    if kind == 'layer':
        return True
    return all(map(_even, parts)) and (kind == 'cat' or len(set(map(_width, parts))) == 1)


def _fits(norm: nn.Module, count: int) -> bool:
    """Whether a norm takes what layers over this many spatial axes return."""
    if isinstance(norm, nn.BatchNorm1d):
        return count < 2
    if isinstance(norm, nn.BatchNorm3d):
        return count == 3
    if isinstance(norm, nn.SyncBatchNorm):
        return True
    return count == 2 if isinstance(norm, _BatchNorm) or is_frozen(norm) else False


def _only_input(node: Node) -> Node | None:
    given = (*node.args, *node.kwargs.values())
    return given[0] if len(given) == 1 and isinstance(given[0], Node) else None
