"""Tags: compile-time constants of kernels, which travel in types alone; functions of them, and the branches that these decide.

A branch that a tag decides is gone before types are inferred: what it leaves out takes no time to compile, and need not be valid.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
from numba import types
from numba.core import ir
from numba.core.analysis import compute_cfg_from_blocks
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.imputils import lower_constant
from numba.core.ir_utils import build_definitions, get_definition, guard
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

__all__ = ["Tag", "TagBranches", "TagType", "constant"]


@dataclass(frozen=True)
class Tag:
    """A compile-time constant for kernels: a str, int, bool, None or a tuple of them. Also usable as a global of a helper."""

    value: Any


class TagType(types.Type):
    """The Numba type of one tag; its instances hold nothing."""

    def __init__(self, value: Any) -> None:
        self.value = value
        super().__init__(name=f"Tag({value!r})")


register_model(TagType)(models.OpaqueModel)


@typeof_impl.register(Tag)
def _typeof_tag(tag: Tag, context: Any) -> TagType:
    return TagType(tag.value)


@lower_constant(TagType)
def _constant_tag(context: Any, builder: Any, tag: TagType, value: Any) -> Any:
    return context.get_dummy_value()


@unbox(TagType)
def _unbox_tag(tag: TagType, obj: Any, c: Any) -> NativeValue:
    return NativeValue(c.context.get_dummy_value())


_functions: dict[Any, Callable[..., int]] = {bool: bool}


def constant(function: Callable[..., int]) -> Any:
    """Decorate a function of tags' values that returns an int or a bool: in kernels it takes the tags, and is a constant."""

    @functools.wraps(function)
    def typed(typingctx: Any, *tags: Any) -> Any:
        number = function(*(tag.value for tag in tags))
        result = types.boolean if isinstance(number, bool) else types.int64

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return context.get_constant(result, number)

        return result(*tags), codegen

    context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    typed.__signature__ = inspect.Signature([context, *inspect.signature(function).parameters.values()])  # type: ignore[attr-defined]
    found = numba.extending.intrinsic(typed)
    _functions[found] = function
    return found


def _known(state: Any, variable: Any) -> Any:
    """The value of a variable of Numba's intermediate code that constants and tags decide, else None."""
    definition = guard(get_definition, state.func_ir, variable)
    known = functools.partial(_known, state)
    if isinstance(definition, ir.Const):
        return definition.value
    if isinstance(definition, ir.Arg):
        kind = state.args[definition.index]
        return kind.value if isinstance(kind, TagType) else None
    if isinstance(definition, ir.Global | ir.FreeVar):
        return definition.value.value if isinstance(definition.value, Tag) else definition.value
    if not isinstance(definition, ir.Expr):
        return None
    if definition.op == "call":
        function = _functions.get(known(definition.func))
        operands = definition.args
    elif definition.op == "binop":
        function, operands = definition.fn, (definition.lhs, definition.rhs)
    elif definition.op == "unary":
        function, operands = definition.fn, (definition.value,)
    else:
        return None
    values = [known(each) for each in operands]
    return None if function is None or any(each is None for each in values) else function(*values)


@register_pass(mutates_CFG=True, analysis_only=False)
class TagBranches(FunctionPass):
    """A pass of Numba's that takes the branches which tags decide."""

    _name = "numconv_tag_branches"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Take them, and drop what they do not lead to."""
        blocks = state.func_ir.blocks
        for block in blocks.values():
            end = block.terminator
            known = _known(state, end.cond) if isinstance(end, ir.Branch) else None
            if isinstance(known, int):
                block.body[-1] = ir.Jump(end.truebr if known else end.falsebr, end.loc)
        dead = compute_cfg_from_blocks(blocks).dead_nodes()
        for each in dead:
            del blocks[each]
        if dead:
            state.func_ir._definitions = build_definitions(blocks)
        return True
