"""Numba's pipeline with less in it, and ended in another way: functions become parts, and parts one library of machine code.

Numba optimises a called function by itself and makes machine code of it, then links it into its caller, where all is done again,
level by level. Here a function is lowered to LLVM code and waits: a library links its parts once, and is optimised as a whole; code
that was emitted as the processor shall run it is left as it is. Most of the time is still Numba's own, in Python: the passes over a
function, and the types of its calls, of which the first are those that plain scalar code needs, and the others are remembered. A
library loaded from disk is machine code alone.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

from llvmlite import binding as llvm
from numba import _dynfunc, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.lowering import Lower
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.runtime import rtsys  # type: ignore[attr-defined]
from numba.core.serialize import dumps
from numba.core.typed_passes import (
    AnnotateTypes,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import FixupArgs, GenericRewrites, IRProcessing, ReconstructSSA, TranslateByteCode

from .tags import TagBranches

__all__ = ["Entry", "Helper", "Library", "Part", "PartCompiler", "compiling"]


class _Part(JITCodeLibrary):
    """The code of a function, and the parts that it calls."""

    def add_ir_module(self, ir_module: Any) -> None:
        """Keep its code, which is neither verified, nor optimised, nor made machine code before it is linked."""
        self._final_module = llvm.parse_assembly(cgutils.normalize_ir_text(str(ir_module)))
        self._final_module.name = ir_module.name
        self._final_module.data_layout = self._codegen._data_layout
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.external:
                function.linkage = "linkonce_odr"  # several libraries may be linked of it

    def finalize(self) -> None:
        """It is complete."""
        self._finalized = True

    def _get_module_for_linking(self) -> Any:
        return self._final_module


class _Linked(JITCodeLibrary):
    """What is linked of parts."""

    def add_linking_library(self, library: Any) -> None:
        """With all that it calls, each once."""
        if library not in self._linking_libraries:
            super().add_linking_library(library)
            if isinstance(library, _Part):
                for called in library._linking_libraries:
                    self.add_linking_library(called)

    def _optimize_functions(self, ll_module: Any) -> None:
        """Of entries from outside, which are optimised with all else."""
        ll_module.data_layout = self._codegen._data_layout


class _Emitted(_Linked):
    """What is linked of parts whose code was emitted as the processor shall run it."""

    def finalize(self) -> None:
        """Link and optimise, and make no machine code.

        LLVM cleans up, without unrolling loops that are unrolled already, or looking for vectors where all are: that took most of
        the time, and made no kernel faster.
        """
        for library in self._linking_libraries:
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        _optimise(self, 1, vectorise=False)
        self._finalized = True


class _Whole(_Linked):
    """The library: what is linked of other parts, and beside it what was emitted."""

    def __init__(self, codegen: Any, name: str):
        super().__init__(codegen, name)
        self.emitted = _Emitted(codegen, name)

    def _optimize_final_module(self) -> None:
        if self._linking_libraries:
            _optimise(self, 2, vectorise=True)
        if self.emitted._linking_libraries:
            self.emitted.finalize()
            self._final_module.link_in(self.emitted._final_module)


def _optimise(library: Any, level: int, *, vectorise: bool) -> None:
    """Once: Numba does it twice, to find references that need not be counted, of which there are none."""
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_unrolling = options.loop_vectorization = vectorise
    options.slp_vectorization = False
    passes = llvm.create_pass_builder(library._codegen._tm, options)
    passes.getModulePassManager().run(library._final_module, passes)


class _Context:
    """A typing or target context that looks for new functions once for each library, not for each function."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def refresh(self) -> None:
        """Nothing: `compiling` has done it."""


class _TargetContext(_Context):
    """Its contexts for single functions count no references: nothing is made that has any, and arguments are held by the caller.

    They remember the size of each type, for which Numba has LLVM read a module.
    """

    _sizes: ClassVar[dict[str, int]] = {}

    def subtarget(self, **names: Any) -> Any:
        """The context in which a function is lowered."""
        context = self._context.subtarget(**{**names, "enable_nrt": False})
        ask = context.get_abi_sizeof

        def size_of(kind: Any) -> int:
            text = str(kind)
            if text not in self._sizes:
                self._sizes[text] = ask(kind)
            return self._sizes[text]

        context.get_abi_sizeof = size_of
        return context


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


class _Lower(Lower):
    """Lowers operators without asking whether there is an implementation for operands that are constants."""

    def lower_binop(self, resty: Any, expr: Any, op: Any) -> Any:
        """The code of an operator, from what was remembered of it."""
        signature = self.fndesc.calltypes[expr]
        operands = [
            self.context.cast(self.builder, self.loadvar(each.name), self.typeof(each.name), kind)
            for each, kind in zip((expr.lhs, expr.rhs), signature.args, strict=True)
        ]
        function = _typing_context.resolve_value_type(op)
        implementation = self.context.get_function(function, _typing_context.resolve_function_type(function, signature.args, {}))
        return self.context.cast(self.builder, implementation(self.builder, operands), signature.return_type, resty)


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    _name = "numconv_lowering"
    lowering_class = _Lower

    def run_pass(self, state: Any) -> bool:
        """Lower into a part, and let callers find the function, which has no machine code of its own."""
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state["cr"]
        # callers find it by the identity of this object, which nobody calls
        entry = _dynfunc.make_function(lowered.fndesc.lookup_module(), lowered.fndesc.qualname, "", 0, lowered.env, ())
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=entry)
        return True


_PASSES = (
    TranslateByteCode,
    FixupArgs,
    TagBranches,
    IRProcessing,
    GenericRewrites,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    AnnotateTypes,
    _Lowering,
    NoPythonBackend,
)


class _Passes(PassManager):
    """Passes that leave the code consistent, which is not established anew after each of them."""

    _ENFORCING = False


class PartCompiler(CompilerBase):
    """Numba's pipeline for compiled functions, up to parts."""

    def __init__(self, typing_context: Any, target_context: Any, *rest: Any) -> None:
        super().__init__(_typing_context, _TargetContext(target_context), *rest)

    def define_pipelines(self) -> list[Any]:
        """What functions on addresses and numbers need of Numba's."""
        passes = _Passes("part")
        for each in _PASSES:
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


class Part(NamedTuple):
    """A function that a library is made of.

    Attributes
    ----------
    result : CompileResult
        Of `PartCompiler`.
    python : bool
        Whether it is called from Python, without the GIL, rather than as C functions are.
    emitted : bool
        Whether its code was emitted as the processor shall run it.
    """

    result: Any
    python: bool
    emitted: bool


class Entry(NamedTuple):
    """How a function of a library is reached: the name of a C function, or what a callable of Python is made from."""

    symbol: str
    python: tuple[Any, Any] | None


class Library(NamedTuple):
    """Machine code, and its entries."""

    code: Any
    entries: tuple[Entry, ...]

    @classmethod
    @global_compiler_lock
    def compiled(cls, name: str, parts: Iterable[Part]) -> Library:
        """Of these parts."""
        context = cpu_target.target_context
        code = _Whole(context.codegen(), name)
        code.enable_object_caching()
        entries = []
        for result, python, emitted in parts:
            function, own = result.fndesc, code.emitted if emitted else code
            own.add_linking_library(result.library)
            if python:
                context.create_cpython_wrapper(own, function, result.environment, result.call_helper, release_gil=True)
                function.typemap = function.calltypes = None  # can't be pickled, and are done with
                entries.append(Entry(function.llvm_cpython_wrapper_name, (function, result.environment)))
            else:
                context.create_cfunc_wrapper(own, function, result.environment, result.call_helper)
                entries.append(Entry(function.llvm_cfunc_wrapper_name, None))
        code.finalize()
        return cls(code, tuple(entries))

    def dumped(self) -> bytes:
        """For `loaded`."""
        return bytes(dumps((self.code.name, self.code._get_compiled_object(), self.entries)))

    @classmethod
    def loaded(cls, content: bytes) -> Library:
        """What was dumped."""
        name, machine_code, entries = pickle.loads(content)
        context = cpu_target.target_context
        rtsys.initialize(context)  # all of Numba that machine code may need; to compile, far more is imported
        code = context.codegen().create_library(name)
        code.enable_object_caching()
        code._set_compiled_object(machine_code)
        code._finalize_final_module()
        # Numba asks this set before it looks for a symbol
        code.codegen._engine._defined_symbols.update(entry.symbol for entry in entries)
        return cls(code, entries)

    def functions(self) -> tuple[Any, ...]:
        """The address of each C function, and a callable for each of the others."""
        return tuple(
            cpu_target.target_context.get_executable(self.code, *entry.python)
            if entry.python
            else self.code.get_pointer_to_function(entry.symbol)
            for entry in self.entries
        )
