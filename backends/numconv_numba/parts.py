"""Numba's pipeline with less in it, and ended in another way: functions become parts, and parts one library of machine code.

Numba optimises a called function by itself and makes machine code of it, then links it into its caller, where all is done again,
level by level. Here a function is lowered to LLVM code and waits: a library links its parts once, and is optimised as a whole. Most
of the time is still Numba's own, in Python: the passes over a function, and the types of its calls, of which the first are those
that plain scalar code needs, and the others are remembered. A library loaded from disk is machine code alone.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from numba import _dynfunc, types  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.runtime import rtsys  # type: ignore[attr-defined]
from numba.core.serialize import dumps
from numba.core.typed_passes import (
    AnnotateTypes,
    IRLegalization,
    NativeLowering,
    NativeParforLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import FixupArgs, GenericRewrites, IRProcessing, ReconstructSSA, TranslateByteCode

from .tags import TagBranches

__all__ = ["Entry", "Helper", "Library", "PartCompiler", "compiling"]


class _Part(JITCodeLibrary):
    """The code of a function, and the parts that it calls."""

    def _optimize_functions(self, ll_module: Any) -> None:
        """The library that is linked of parts is optimised as a whole."""
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        """Neither link, nor optimise, nor make machine code."""
        self._finalized = True


class _Whole(JITCodeLibrary):
    """What is linked of parts."""

    def add_linking_library(self, library: Any) -> None:
        """With all that it calls, each once."""
        if library not in self._linking_libraries:
            super().add_linking_library(library)
            if isinstance(library, _Part):
                for called in library._linking_libraries:
                    self.add_linking_library(called)


@register_pass(mutates_CFG=False, analysis_only=True)
class _Deletions(IRLegalization):
    _name = "numconv_deletions"

    def run_pass(self, state: Any) -> bool:
        """Mark where variables end, which takes code for each, only if references to one of them are counted."""
        models = state.targetctx.data_model_manager
        if any(models[each].contains_nrt_meminfo() for each in state.typemap.values()):
            super().run_pass(state)
        return True


class _IntoPart:
    """What lowering into a part adds to a lowering pass of Numba's."""

    def run_pass(self, state: Any) -> bool:
        """Lower, and let callers find the function, which has no machine code of its own."""
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)  # type: ignore[misc]
        lowered = state["cr"]
        # callers find it by the identity of this object, which nobody calls
        entry = _dynfunc.make_function(lowered.fndesc.lookup_module(), lowered.fndesc.qualname, "", 0, lowered.env, ())
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=entry)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(_IntoPart, NativeLowering):
    _name = "numconv_lowering"


@register_pass(mutates_CFG=True, analysis_only=False)
class _ParforLowering(_IntoPart, NativeParforLowering):
    _name = "numconv_parfor_lowering"


_INSTEAD = {NativeLowering: _Lowering, NativeParforLowering: _ParforLowering}
_SERIAL = (
    TranslateByteCode,
    FixupArgs,
    TagBranches,
    IRProcessing,
    GenericRewrites,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    _Deletions,
    AnnotateTypes,
    _Lowering,
    NoPythonBackend,
)


class _Context:
    """A typing or target context that looks for new functions once for each library, not for each function."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def refresh(self) -> None:
        """Nothing: `compiling` has done it."""


class _TypingContext(_Context):
    """Remembers what each function returns for each combination of types.

    Numba asks all implementations of an operator, those for arrays and for ufuncs too, each time that it is used.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._signatures: dict[Any, Any] = {}

    def resolve_function_type(self, function: Any, arguments: Any, named: Any) -> Any:
        """The signature of a call, or None."""
        key = function, tuple(arguments), tuple(sorted(named.items()))
        found = self._signatures.get(key)
        if found is None:
            found = self._signatures[key] = self._context.resolve_function_type(function, arguments, named)
        return found


_typing_context = _TypingContext(cpu_target.typing_context)


class _Passes(PassManager):
    """Passes that leave the code consistent, which is not established anew after each of them."""

    _ENFORCING = False


class PartCompiler(CompilerBase):
    """Numba's pipeline for compiled functions, up to parts."""

    def __init__(self, typing_context: Any, target_context: Any, *rest: Any) -> None:
        super().__init__(_typing_context, _Context(target_context), *rest)

    def define_pipelines(self) -> list[Any]:
        """For parallel loops the usual one, with another end; else what helpers need of it."""
        if self.state.flags.auto_parallel.enabled:
            passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
            passes.passes = [(_INSTEAD.get(each, each), text) for each, text in passes.passes]
            passes._finalized = False
        else:
            passes = _Passes("part")
            for each in _SERIAL:
                passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class Helper(CPUDispatcher):
    """A function that is compiled into its callers, once for each combination of types: a number in a call makes no type."""

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """What a caller needs to know."""
        numbers = types.IntegerLiteral, types.BooleanLiteral
        return super().get_call_template([types.unliteral(each) if isinstance(each, numbers) else each for each in args], kws)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """What a library and its parts are compiled in.

    Without the garbage collector, which would look through all of Numba's objects a thousand times for the few that are free.
    """
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class Entry(NamedTuple):
    """How a function of a library is reached: the name of a C function, or what a callable of Python is made from."""

    symbol: str
    python: tuple[Any, Any] | None


class Library(NamedTuple):
    """Machine code, its entries, and what to call before they are used: a parallel loop needs Numba's threads."""

    code: Any
    entries: tuple[Entry, ...]
    starts: tuple[Any, ...]

    @classmethod
    @global_compiler_lock
    def compiled(cls, name: str, parts: Iterable[Any], *, python: bool) -> Library:
        """Of the results of `PartCompiler`, to be called from `python`, without the GIL, or as C functions are."""
        context = cpu_target.target_context
        code = _Whole(context.codegen(), name)
        code.enable_object_caching()
        entries, starts = [], set()
        for part in parts:
            starts.update(part.reload_init)
            code.add_linking_library(part.library)
            if python:
                context.create_cpython_wrapper(code, part.fndesc, part.environment, part.call_helper, release_gil=True)
                part.fndesc.typemap = part.fndesc.calltypes = None  # can't be pickled, and are done with
                entries.append(Entry(part.fndesc.llvm_cpython_wrapper_name, (part.fndesc, part.environment)))
            else:
                context.create_cfunc_wrapper(code, part.fndesc, part.environment, part.call_helper)
                entries.append(Entry(part.fndesc.llvm_cfunc_wrapper_name, None))
        code.finalize()
        return cls(code, tuple(entries), tuple(starts))

    def dumped(self) -> bytes:
        """For `loaded`."""
        return bytes(dumps((self.code.name, self.code._get_compiled_object(), self.entries, self.starts)))

    @classmethod
    def loaded(cls, content: bytes) -> Library:
        """What was dumped."""
        name, machine_code, entries, starts = pickle.loads(content)
        context = cpu_target.target_context
        rtsys.initialize(context)  # all of Numba that machine code may need; to compile, far more is imported
        for start in starts:
            start()
        code = context.codegen().create_library(name)
        code.enable_object_caching()
        code._set_compiled_object(machine_code)
        code._finalize_final_module()
        # Numba asks this set before it looks for a symbol
        code.codegen._engine._defined_symbols.update(entry.symbol for entry in entries)
        return cls(code, entries, starts)

    def functions(self) -> tuple[Any, ...]:
        """The address of each C function, and a callable for each of the others."""
        return tuple(
            cpu_target.target_context.get_executable(self.code, *entry.python)
            if entry.python
            else self.code.get_pointer_to_function(entry.symbol)
            for entry in self.entries
        )
