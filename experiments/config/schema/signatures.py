"""Reads signatures from source with `ast`, never by import, so that a plan loads neither torch nor the components.

The grammar of hints: `int float bool str`, `None`, `X | Y`, `Optional[X]`, `Literal[...]`, `tuple[X, ...]`,
`tuple[X, Y]`, `list[X]`, `dict[str, X]`, component specs, `Input`, and the marks of `maskgit_core/hints.py`. Names of
aliases and constants are followed to where they are assigned, also across `from ... import ...`. A component may be a
frozen dataclass (its fields are its keys, those of its bases included), and a stage may take one (`recipe: Recipe`).
"""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.config.schema.params import Hint, Param, Signature
from experiments.store.typed_json import Block
from maskgit_core.errors import ConfigError
from maskgit_core.models import present_module

SCALARS = ("int", "float", "bool", "str")
MARKS = {"Derived": "derived", "Execution": "execution", "Content": "content", "Weights": "weights"}
SPEC_NAMES = {
    **{f"{name}Spec": name for name in ("Tokenizer", "Model", "Sampler", "Dataset", "Extractor", "Metric")},
    **{name: name for name in ("Tokenizer", "Model", "Sampler", "Dataset", "Extractor", "Metric")},
}
_KNOWN = "Range, Divides, Neutral, Revised, UnusedIf, Kind"


def read_component(module: str, class_name: str, key: str) -> Signature:
    """The signature of `class_name.__init__` in dotted `module`."""
    return _read(module, class_name, key)


def read_stage(module: str, key: str) -> Signature:
    """The signature of `run` in a stage's module, and its VERSION and PRODUCES."""
    return _read(module, None, key)


def source_file(module: str) -> Path | None:
    """The file of a dotted module, found without importing it; None where there is none."""
    if module in _found:
        return _found[module]
    package, _, rest = present_module(module).partition(".")
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place, *rest.split(".")).with_suffix(".py")
        if path.is_file():
            _found[module] = path  # only what is there is remembered: a plugin may still come
            return path
    return None


_found: dict[str, Path] = {}


@cache
def _read(module: str, class_name: str | None, key: str) -> Signature:
    path = source_file(module)
    if path is None:
        raise ConfigError(f"{key}: there is no module {module}")
    tree = _tree(path)
    signature = Signature(module, path, {}, _constants(tree))
    wanted: tuple[type, str] = (ast.FunctionDef, "run") if class_name is None else (ast.ClassDef, class_name)
    node = next((n for n in tree.body if isinstance(n, wanted[0]) and getattr(n, "name", None) == wanted[1]), None)
    if node is None:
        raise ConfigError(f"{key}: {path.name} has no {'function' if class_name is None else 'class'} {wanted[1]}")
    try:
        signature.params.update(_keys(node, module, signature.groups))
    except ValueError as error:
        raise ConfigError(f"{key}{error}") from None
    return signature


def _keys(node: ast.stmt, module: str, groups: dict[str, tuple[str, str]]) -> dict[str, Param]:
    """The keys of a function or class: keyword-only arguments, fields of a dataclass, or those of its first base."""
    path = source_file(module) or source_file(f"{module}.__init__")
    name = path.name if path is not None else module
    if isinstance(node, ast.FunctionDef):
        if node.args.kwarg is not None or len(node.args.args) > 1:
            raise ValueError(f": {name}: {node.name} must take keyword-only arguments; its signature is the schema")
        return _arguments(node, module, name, groups)
    assert isinstance(node, ast.ClassDef)
    if _is_dataclass(node):
        try:
            return _fields(node, module)
        except ValueError as error:
            raise ValueError(f": {name}: {node.name}: {error}") from None
    own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if own is not None:
        return _keys(own, module, groups)
    bases = (_definition(ast.unparse(base), module) for base in node.bases)
    return next((_keys(b[0], b[1], groups) for b in bases if b is not None and isinstance(b[0], ast.ClassDef)), {})


def _arguments(
    function: ast.FunctionDef, module: str, file: str, groups: dict[str, tuple[str, str]]
) -> dict[str, Param]:
    params: dict[str, Param] = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        try:
            for param in _params(argument, default, module, groups):
                if param.name in params:
                    raise ValueError(f"{param.name} is declared twice")
                params[param.name] = param
        except ValueError as error:
            raise ValueError(f".{argument.arg}: {file} line {argument.lineno}: {error}") from None
    return params


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(), filename=str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}: line {error.lineno}: cannot be parsed ({error.msg})") from None


def _constants(tree: ast.Module) -> Block:
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    try:
                        constants[target.id] = ast.literal_eval(node.value)
                    except ValueError:
                        continue
    return constants


def _params(
    argument: ast.arg, default: ast.expr | None, module: str, groups: dict[str, tuple[str, str]]
) -> list[Param]:
    """The keys of an argument: itself, or the fields of its dataclass, which is noted in `groups`."""
    hint = argument.annotation
    if hint is None:
        raise ValueError("a parameter of a config schema needs a type hint")
    if isinstance(hint, ast.Name) and hint.id not in {*SCALARS, *SPEC_NAMES, "dict", "Input"}:
        definition = _definition(hint.id, module)
        if definition is not None and isinstance(definition[0], ast.ClassDef):
            groups[argument.arg] = (definition[1], definition[0].name)
            return [replace(param, group=argument.arg) for param in _fields(*definition).values()]
    return [_param(argument.arg, hint, default, module)]


def _param(name: str, hint: ast.expr, default: ast.expr | None, module: str) -> Param:
    param = _hinted(hint, module, name)
    return param if default is None else replace(param, default=_literal(default, module))


def _is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def _fields(node: ast.expr | ast.ClassDef, module: str) -> dict[str, Param]:
    """The fields of a dataclass, those of its bases first."""
    if not isinstance(node, ast.ClassDef) or not any("frozen=True" in ast.unparse(d) for d in node.decorator_list):
        raise ValueError("only the fields of a frozen dataclass can be keys of a config")
    fields: dict[str, Param] = {}
    for base in reversed(node.bases):
        definition = _definition(ast.unparse(base), module)
        if definition is not None and _is_dataclass(definition[0]):
            fields |= _fields(*definition)
    for inner in node.body:
        if isinstance(inner, ast.AnnAssign) and not ast.unparse(inner.annotation).startswith("ClassVar"):
            name = ast.unparse(inner.target)
            fields[name] = _param(name, inner.annotation, inner.value, module)
    return fields


def _hinted(node: ast.expr, module: str, name: str) -> Param:
    """Resolves marks and `Annotated` around the hint proper."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        head = node.value.id
        if head == "Derived":  # a fact may be any object: no config ever holds it
            return Param(name, Hint("fact"), marks=frozenset({"derived"}))
        if head in MARKS:
            inner = _hinted(node.slice, module, name)
            return replace(inner, marks=inner.marks | {MARKS[head]})
        if head == "Annotated" and isinstance(node.slice, ast.Tuple):
            param = _hinted(node.slice.elts[0], module, name)
            for mark in node.slice.elts[1:]:
                param = _marked(param, mark, module)
            return param
    return Param(name, _hint(node, module))


def _marked(param: Param, mark: ast.expr, module: str) -> Param:
    if isinstance(mark, ast.Constant) and isinstance(mark.value, str):
        return replace(param, marks=param.marks | {mark.value})
    if not (isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name)):
        raise ValueError(
            f"the mark {ast.unparse(mark)} is not known; use Range, Divides, Neutral, Revised, UnusedIf or Kind"
        )
    values = [_literal(a, module) for a in mark.args]
    named = {k.arg: _literal(k.value, module) for k in mark.keywords}
    if mark.func.id == "Range":
        bounds: Block = dict(zip(("low", "high", "low_open", "high_open"), values, strict=False))
        return replace(param, **bounds, **{str(k): v for k, v in named.items()})
    if mark.func.id == "Neutral":
        return replace(param, neutral=values[0] if values else named["value"])
    if mark.func.id == "UnusedIf":
        other, value = (*values, *named.values())
        return replace(param, unused_if=(str(other), value))
    if mark.func.id == "Revised":
        number, unless = (*values, *named.values()) if len(values) + len(named) == 2 else (values[0], ())
        return replace(param, revision=int(number), unrevised=tuple(unless))
    if mark.func.id == "Kind":
        return replace(param, kind=values[0] if values else named["name"])
    if mark.func.id == "Divides":
        return replace(param, divides=values[0] if values else named["name"])
    raise ValueError(f"the mark {mark.func.id} is not known; use one of {_KNOWN}")


def _hint(node: ast.expr, module: str) -> Hint:
    if isinstance(node, ast.Constant) and node.value is None:
        return Hint("none")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _hint(ast.parse(node.value, mode="eval").body, module)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [_hint(side, module) for side in (node.left, node.right)]
        return Hint("union", tuple(h for side in sides for h in (side.args if side.form == "union" else (side,))))
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return _subscript(node.value.id, node.slice, module)
    if isinstance(node, ast.Name):
        if node.id in SCALARS:
            return Hint(node.id)
        if node.id == "Input":
            return Hint("input")
        if node.id in SPEC_NAMES:
            return Hint("spec", (SPEC_NAMES[node.id],))
        if node.id == "dict":
            return Hint("dict")
        definition = _definition(node.id, module)
        if definition is not None and isinstance(definition[0], ast.expr):
            return _hint(definition[0], definition[1])
    raise ValueError(f"the hint {ast.unparse(node)} is outside the schema's grammar")


def _subscript(head: str, inner: ast.expr, module: str) -> Hint:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if head == "Literal":
        return Hint("literal", tuple(_literal(p, module) for p in parts))
    if head == "Optional":
        return Hint("union", (_hint(inner, module), Hint("none")))
    if head in ("tuple", "list", "Sequence"):
        args = tuple(
            Ellipsis if isinstance(p, ast.Constant) and p.value is Ellipsis else _hint(p, module) for p in parts
        )
        return Hint("tuple" if head == "tuple" else "list", args)
    if head in ("dict", "Mapping"):
        return Hint("dict", (_hint(parts[1], module),) if len(parts) == 2 and not _is_any(parts[1]) else ())
    if head in MARKS or head == "Annotated":
        return _hint(parts[0], module)
    raise ValueError(f"the hint {head}[...] is outside the schema's grammar")


def _is_any(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("Any", "object")


def _definition(name: str, module: str) -> tuple[ast.expr | ast.ClassDef, str] | None:
    """The class or expression that `name` means at the top of `module`, followed through imports; and its module."""
    path = source_file(module) or source_file(f"{module}.__init__")
    if path is None:
        return None
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, module
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value, module
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return (node.value, module) if node.value is not None else None
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(alias.name, node.module)
    return None


def _literal(node: ast.expr, module: str) -> Any:
    if isinstance(node, ast.Name):
        definition = _definition(node.id, module)
        if definition is None or isinstance(definition[0], ast.ClassDef):
            raise ValueError(f"{node.id} is not a constant that can be read from source")
        return _literal(definition[0], definition[1])
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is not a literal; defaults must be readable from source") from None
    return list(value) if isinstance(value, tuple) else value
