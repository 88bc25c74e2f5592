"""What a rule may say, told when it is made: names, hyper-parameters, and constructs that not every compiler takes."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import RuleError
from ..lang import COMPILERS, WORDS, is_device_function, is_words, source_of, used_names

ARGUMENTS = ("p", "g", "state", "hyper", "step")
SCALAR_ARGUMENTS = ("hyper", "step")

# What of Python's syntax a rule has no use for, and what it writes instead.
_CHOOSE = "write tl.where(condition, a, b), which chooses element by element"
_REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.If: ("`if` looks at one number, but the rule runs on many", _CHOOSE),
    ast.IfExp: ("`a if condition else b` looks at one number, but the rule runs on many", _CHOOSE),
    ast.BoolOp: ("`and` and `or` look at one number, but the rule runs on many", "write (a) & (b) or (a) | (b)"),
    ast.For: ("a loop", "write its steps one after the other"),
    ast.While: ("a loop", "write its steps one after the other"),
    ast.ListComp: ("a loop", "write its steps one after the other"),
    ast.GeneratorExp: ("a loop", "write its steps one after the other"),
    ast.Lambda: ("a lambda", "define a function with device_function"),
    ast.Starred: ("a starred argument", "write the arguments one by one"),
    ast.keyword: ("an argument by name", "give arguments in their order"),
    ast.List: ("a list", "write a tuple"),
    ast.Dict: ("a dict", "write a tuple"),
    ast.JoinedStr: ("a string", "a rule has numbers only"),
    ast.Try: ("`try`", "a rule cannot fail"),
    ast.Raise: ("`raise`", "a rule cannot fail"),
    ast.Assert: ("`assert`", "a rule cannot fail"),
    ast.With: ("`with`", "leave it out"),
    ast.Import: ("an import", "import above the rule"),
    ast.ImportFrom: ("an import", "import above the rule"),
}
_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Pow: (
        "`a ** b` runs in Triton's interpreter and does not compile for GPUs",
        "write a * a, or tl.exp(b * tl.log(a))",
    ),
    ast.FloorDiv: ("`//` of numbers with a fraction", "write tl.div_rn(a, b)"),
    ast.Mod: ("`%` differs between compilers", "compute it on the host and pass it in `hyper`"),
    ast.MatMult: ("`@`", "a rule sees one element at a time"),
    ast.Not: ("`not` looks at one number, but the rule runs on many", "write the opposite comparison"),
}
_BUILTINS = {"abs": "tl.abs", "max": "tl.maximum", "min": "tl.minimum", "pow": "tl.exp(b * tl.log(a))"}


def check_names(numbers: tuple[str, ...], states: tuple[str, ...], of: str = "hyper") -> None:
    """Refuses names of hyper-parameters (or, as `of` says, of others) and states that cannot be any.

    Raises:
        ValueError: one that is given twice, or is no name; "params", which groups have already.
    """
    for what, names in ((of, numbers), ("states", states)):
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name == "params":
                raise ValueError(f"{what}={names!r}: {name!r} cannot be a name; give a word that Python allows")
            if names.count(name) > 1:
                raise ValueError(f"{what}={names!r} names {name!r} twice; give each once")


def check_init(
    init: Mapping[str, float | str],
    numbers: tuple[str, ...],
    states: tuple[str, ...],
    own: tuple[str, ...],
    returned: tuple[str, ...],
    value: str,
) -> None:
    """Refuses initial values of nothing, or by names of nothing; and scalars that would never change.

    Args:
        returned: Names of what the rule's scalars return.
        value: What stands for the variable's own value.

    Raises:
        ValueError: says which name, and what it may be.
    """
    for name, first in init.items():
        if name not in (*states, *own):
            raise ValueError(f"init={dict(init)!r}: {name!r} is none of the states {states!r} or of own={own!r}")
        known = (*numbers, value) if name in states else numbers
        if isinstance(first, str) and first not in known:
            raise ValueError(f"init={dict(init)!r}: {first!r} is no number of hyper={numbers!r}; give one, or a number")
    missing = [name for name in own if name not in returned]
    if missing:
        raise ValueError(f"own={own!r}: the rule's scalars do not return {missing[0]!r}; add it to their names")


def check_scalars(function: Callable[..., Any], names: tuple[str, ...]) -> None:
    """Refuses scalars that say what a compiler does not take.

    Raises:
        RuleError: with the line, and what to write there.
    """
    _check_arguments(function, SCALAR_ARGUMENTS)
    try:
        tree = source_of(function)
    except RuleError:
        return
    _check_body(function, tree)
    returns = [node for node, _ in _nodes(tree) if isinstance(node, ast.Return)]
    if not returns:
        raise RuleError(function, tree.lineno, "it returns nothing", f"return ({', '.join(names)},)")
    for node in returns:
        if isinstance(node.value, ast.Tuple) and len(node.value.elts) != len(names):
            found = f"{len(node.value.elts)} numbers are returned, and {len(names)} have names"
            raise RuleError(function, node.lineno, found, f"return ({', '.join(names)},)")


def check_statistics(function: Callable[..., Any]) -> None:
    """Refuses statistics that say what a compiler does not take.

    Raises:
        RuleError: with the line, and what to write there.
    """
    _check_arguments(function, ARGUMENTS)
    try:
        tree = source_of(function)
    except RuleError:
        return
    _check_body(function, tree)


def _check_arguments(function: Callable[..., Any], wanted: tuple[str, ...]) -> tuple[str, ...]:
    given = tuple(inspect.signature(function).parameters)
    if len(given) != len(wanted):
        raise RuleError(function, None, f"its arguments are ({', '.join(given)})", f"write ({', '.join(wanted)})")
    return given


def check_function(
    function: Callable[..., Any],
    numbers: tuple[str, ...],
    states: tuple[str, ...],
    check_unused: bool = True,
) -> None:
    """Refuses a rule that says what a compiler does not take.

    Args:
        check_unused: Whether it must read all of its numbers: scalars may have read them instead.

    Raises:
        RuleError: with the line, and what to write there.
    """
    given = _check_arguments(function, ARGUMENTS)
    try:
        tree = source_of(function)
    except RuleError:
        return  # typed into a shell: the compiler will say so, should it come that far
    _check_body(function, tree)
    _check_tuple(function, tree, given[2], states, "state")
    _check_tuple(function, tree, given[3], numbers, "hyper-parameter")
    if check_unused:
        _check_unused(function, tree, given[3], numbers)
    _check_result(function, tree, given[2], states)


def _check_body(function: Callable[..., Any], tree: ast.FunctionDef) -> None:
    names = used_names(function)
    if tree.returns is not None or any(argument.annotation for argument in tree.args.args):
        raise RuleError(function, tree.lineno, "it is annotated, and Triton looks annotations up", "leave them out")
    for node, line in _nodes(tree):
        refused = _REFUSED.get(type(node))
        if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.AugAssign)):
            refused = _OPERATORS.get(type(node.op))
        elif isinstance(node, ast.Compare) and len(node.ops) > 1:
            refused = ("a < b < c looks at one number, but the rule runs on many", "write (a < b) & (b < c)")
        elif isinstance(node, ast.Call):
            refused = _refused_call(node, names)
        if refused is not None:
            raise RuleError(function, line, *refused)
    for value in names.values():
        if is_device_function(value) and not value.__module__.startswith(__package__.rpartition(".")[0]):
            _check_body(value, source_of(value))


def _refused_call(node: ast.Call, names: dict[str, Any]) -> tuple[str, str] | None:
    called = node.func
    text = ast.unparse(called)
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        if is_words(names.get(called.value.id)):
            known = called.attr in WORDS
            return None if known else (f"{text} is not a word of rules", f"tl has {', '.join(WORDS)}")
    elif isinstance(called, ast.Name):
        value = names.get(called.id)
        if is_device_function(value) or getattr(value, "__module__", None) == f"{__package__.rpartition('.')[0]}.lang":
            return None
        if called.id in _BUILTINS and value is getattr(builtins, called.id):
            return f"{text}(...) looks at one number, but the rule runs on many", f"write {_BUILTINS[called.id]}"
    return f"{text}(...) is not a word of rules", "use those of tl, or decorate your function with device_function"


def _check_tuple(
    function: Callable[..., Any], tree: ast.FunctionDef, argument: str, names: tuple[str, ...], what: str
) -> None:
    """Looks at every use of `state` or `hyper`: by name, by position, unpacked."""
    have = f"it has {', '.join(names)}" if names else "it has none"
    for node, line in _nodes(tree):
        if isinstance(node, ast.Attribute) and _is_name(node.value, argument):
            if what == "state":
                raise RuleError(function, line, f"a {what} has a position, not a name", f"write {argument}[0]")
            if node.attr not in names:
                raise RuleError(function, line, f"the rule has no {what} {node.attr!r}", have)
        elif isinstance(node, ast.Subscript) and _is_name(node.value, argument):
            place = node.slice.value if isinstance(node.slice, ast.Constant) else None
            if not isinstance(place, int) or not 0 <= place < len(names):
                raise RuleError(function, line, f"{ast.unparse(node)}: the rule has {len(names)} of them", have)
        elif isinstance(node, ast.Assign) and _is_name(node.value, argument):
            target = node.targets[0]
            if isinstance(target, ast.Tuple) and len(target.elts) != len(names):
                found = f"{len(target.elts)} names are unpacked from {argument!r}, which has {len(names)}"
                raise RuleError(function, line, found, have)


def _check_unused(function: Callable[..., Any], tree: ast.FunctionDef, argument: str, names: tuple[str, ...]) -> None:
    """A number that is declared and never read is a slip of the pen; `hyper` as a whole reads them all."""
    read: set[str] = set()
    partly = 0
    for node, _ in _nodes(tree):
        if isinstance(node, ast.Attribute) and _is_name(node.value, argument):
            read.add(node.attr)
            partly += 1
        elif isinstance(node, ast.Subscript) and _is_name(node.value, argument):
            read.add(names[node.slice.value])  # type: ignore[attr-defined]
            partly += 1
    if sum(_is_name(node, argument) for node, _ in _nodes(tree)) > partly:
        return
    unused = [name for name in names if name not in read]
    if unused:
        listed = ", ".join(map(repr, unused))
        raise RuleError(function, tree.lineno, f"it reads no {listed}", "use it, or take it out of hyper=")


def _check_result(function: Callable[..., Any], tree: ast.FunctionDef, argument: str, states: tuple[str, ...]) -> None:
    returns = [node for node, _ in _nodes(tree) if isinstance(node, ast.Return)]
    if not returns:
        raise RuleError(function, tree.lineno, "it returns nothing", "return p, (new states)")
    for node in returns:
        value = node.value
        if isinstance(value, ast.Call):
            continue  # another device function's result, which the compiler looks at
        if not isinstance(value, ast.Tuple) or len(value.elts) != 2:
            raise RuleError(function, node.lineno, "it does not return a pair", "return p, (new states)")
        kept = value.elts[1]
        if isinstance(kept, ast.Tuple) and len(kept.elts) != len(states):
            listed = f"{len(kept.elts)} states are returned, and the rule has {len(states)}"
            raise RuleError(function, node.lineno, listed, "return one for each name of states=")


def _nodes(tree: ast.FunctionDef) -> Iterator[tuple[ast.AST, int]]:
    """All of a function's body, with lines."""
    for statement in tree.body:
        for node in ast.walk(statement):
            yield node, getattr(node, "lineno", statement.lineno)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def check_compiled(rule: Any) -> None:
    """Compiles a rule with every compiler that is installed, for no device in particular."""
    for name in COMPILERS:
        importlib.import_module(f"{__package__.rpartition('.')[0]}.{name}.check").check(rule)
