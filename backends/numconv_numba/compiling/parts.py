"""Numba's pipeline with less in it, and ended in another way: functions become parts, and parts one library of machine code.

Numba optimises a called function by itself and makes machine code of it, then links it into its caller, where all is done again,
level by level. Here a function is lowered to LLVM code and waits: a library links its parts once, and is optimised as a whole; code
that was emitted as the processor shall run it is left as it is. Most of the time is still Numba's own, in Python: the passes over a
function, and the types of its calls, of which the first are those that plain scalar code needs, and the others are remembered. So
code is text until all of a library's is there: what comes before asks nothing of LLVM, which one thread at a time may use, and runs
while LLVM is at work on another library. A library loaded from disk is machine code alone.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import pickle
import sys
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

from llvmlite import binding as llvm
from llvmlite import ir
from numba import _dynfunc, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.core.codegen import CodeLibrary, JITCodeLibrary
from numba.core.compiler import CompilerBase, _LowerResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import LoweringPass, PassManager, register_pass
from numba.core.funcdesc import PythonFunctionDescriptor
from numba.core.lowering import Lower
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.runtime import rtsys  # type: ignore[attr-defined]
from numba.core.serialize import dumps
from numba.core.typed_passes import (
    AnnotateTypes,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import FixupArgs, GenericRewrites, IRProcessing, ReconstructSSA, TranslateByteCode

from .tags import TagBranches

__all__ = ["Draft", "Entry", "Helper", "Library", "Part", "PartCompiler", "compiling"]


SWITCH_SECONDS = 0.0002
"""After which a thread gets the interpreter that asked for it."""


@functools.cache
def _triple() -> str:
    return str(llvm.get_process_triple())


def _empty_module(codegen: Any, name: str) -> ir.Module:
    """Numba asks LLVM for the triple each time, and LLVM may be busy."""
    module = ir.Module(cgutils.normalize_ir_text(name))
    module.triple, module.data_layout = _triple(), codegen._data_layout
    return module


class _Part(JITCodeLibrary):
    """The code of a function as text, and the parts that it calls: LLVM may be busy with the library before."""

    def __init__(self, codegen: Any, name: str):
        CodeLibrary.__init__(self, codegen, name)
        self.texts: list[str] = []
        self.called: list[Any] = []

    def create_ir_module(self, name: str) -> ir.Module:
        """An empty module."""
        return _empty_module(self._codegen, name)

    def add_linking_library(self, library: Any) -> None:
        """What it calls."""
        library._ensure_finalized()
        self.called.append(library)

    def add_ir_module(self, ir_module: Any) -> None:
        """Keep its code, which is neither verified, nor optimised, nor made machine code before it is linked.

        Several libraries may be linked of its functions, and drop those that are inlined everywhere.
        """
        for function in ir_module.functions:
            if not function.is_declaration and not function.linkage:
                function.linkage = "linkonce_odr"
        self._keep(ir_module)

    def _keep(self, ir_module: Any) -> None:
        self.texts.append(cgutils.normalize_ir_text(str(ir_module)))

    def finalize(self) -> None:
        """It is complete."""
        self._finalized = True

    def all_texts(self) -> list[str]:
        """Its code and that of all that it calls, each once, after all that call it: LLVM drops what nobody has called yet."""
        seen, texts = set(), []

        def visit(library: Any) -> None:
            if library in seen:
                return
            seen.add(library)
            part = isinstance(library, _Part)
            for each in library.called if part else ():
                visit(each)
            texts.append(library.texts if part else [_shared(library.get_llvm_str())])

        visit(self)
        return [text for each in reversed(texts) for text in each]

    def linked(self) -> Any:
        """The module of all these."""
        first, *rest = self.all_texts() or [str(self.create_ir_module(self.name))]
        module = llvm.parse_assembly(first)
        module.name = self.name
        for text in rest:
            module.link_in(llvm.parse_assembly(text))
        return module

    def _get_module_for_linking(self) -> Any:
        """For what Numba compiles itself, as it does with overloads that call helpers."""
        return self.linked()


class _Entries(_Part):
    """The functions by which a library is entered, and the parts that they call."""

    def add_ir_module(self, ir_module: Any) -> None:
        """Keep its functions, whatever calls them."""
        self._keep(ir_module)


def _shared(text: str) -> str:
    """What Numba itself has compiled, as if it were a part."""
    module = llvm.parse_assembly(text)
    for function in module.functions:
        if not function.is_declaration and function.linkage == llvm.Linkage.external:
            function.linkage = "linkonce_odr"
    return str(module)


def _optimise(module: Any, machine: Any, level: int, *, vectorise: bool) -> None:
    """Once: Numba does it twice, to find references that need not be counted, of which there are none."""
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_unrolling = options.loop_vectorization = vectorise
    options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)


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
        context.create_module = functools.partial(_empty_module, context.codegen())
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
class _Lowering(LoweringPass):
    """Lowers into a part, as Numba's `NativeLowering` does, which asks LLVM for its statistics before and after."""

    _name = "numconv_lowering"

    def __init__(self) -> None:
        LoweringPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Lower, and let callers find the function, which has no machine code of its own."""
        context, flags = state.targetctx, state.flags
        state.library = library = _Part(context.codegen(), state.func_id.func_qualname)
        function = PythonFunctionDescriptor.from_specialized_function(
            state.func_ir, state.typemap, state.return_type, state.calltypes, mangler=context.mangler, inline=flags.forceinline,
            noalias=flags.noalias, abi_tags=[flags.get_mangle_string()],
        )  # fmt: skip
        with context.push_code_library(library):
            lower = _Lower(context, library, function, state.func_ir, metadata=state.metadata)
            lower.lower()
        # callers find it by the identity of this object, which nobody calls
        entry = _dynfunc.make_function(function.lookup_module(), function.qualname, "", 0, lower.env, ())
        context.insert_user_function(entry, function, [library])
        state["cr"] = _LowerResult(function, lower.call_helper, cfunc=entry, env=lower.env)
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
    Another thread that has LLVM at work waits for the interpreter hundreds of times, 5 ms each if nothing were said.
    """
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    collects, interval = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
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


class Draft(NamedTuple):
    """A library before LLVM has seen it: the next one can be drafted while LLVM is at work on this one.

    Attributes
    ----------
    name : str
    compiled, emitted : _Entries
        The functions by which it is entered: those that LLVM optimises, and those whose code was emitted as the processor shall run
        it, which it only cleans up: unrolling loops that are unrolled already, and looking for vectors where all are, took most of
        the time, and made no kernel faster.
    entries : tuple of Entry
    """

    name: str
    compiled: Any
    emitted: Any
    entries: tuple[Entry, ...]

    @classmethod
    @global_compiler_lock
    def of(cls, name: str, parts: Iterable[Part]) -> Draft:
        """These parts."""
        context = _TargetContext(cpu_target.target_context).subtarget()
        compiled, beside = (_Entries(context.codegen(), each) for each in (name, f"{name}.emitted"))
        entries = []
        for result, python, emitted in parts:
            function, own = result.fndesc, beside if emitted else compiled
            own.add_linking_library(result.library)
            if python:
                context.create_cpython_wrapper(own, function, result.environment, result.call_helper, release_gil=True)
                function.typemap = function.calltypes = None  # can't be pickled, and are done with
                entries.append(Entry(function.llvm_cpython_wrapper_name, (function, result.environment)))
            else:
                context.create_cfunc_wrapper(own, function, result.environment, result.call_helper)
                entries.append(Entry(function.llvm_cfunc_wrapper_name, None))
        return cls(name, compiled, beside, tuple(entries))

    def optimised(self) -> Any:
        """Its module, for which LLVM's lock is all that is held."""
        machine, module = self.compiled.codegen._tm, self.compiled.linked()
        if self.compiled.called:
            _optimise(module, machine, 2, vectorise=True)
        if self.emitted.called:
            emitted = self.emitted.linked()
            _optimise(emitted, machine, 1, vectorise=False)
            module.link_in(emitted)
        module.verify()
        missing = [each.name for each in module.functions if each.is_declaration and each.name.startswith("_ZN")]
        if missing:  # LLVM would end the process
            raise AssertionError(f"{self.name} calls functions that are not in it: {', '.join(missing)}")
        return module

    def machine_code(self) -> tuple[bytes, bool]:
        """For `dumped`; and whether another process may load it, which has no address of this one in it."""
        module = self.optimised()
        lasting = not any(each.name.startswith("numba.dynamic.globals") for each in module.global_variables)
        return bytes(self.compiled.codegen._tm.emit_object(module)), lasting

    def assembly(self) -> str:
        """The same, to be read."""
        return str(self.compiled.codegen._tm.emit_assembly(self.optimised()))

    def dumped(self, machine_code: bytes) -> bytes:
        """For `Library.loaded`."""
        return bytes(dumps((self.name, machine_code, self.entries)))


class Library(NamedTuple):
    """Machine code, and its entries."""

    code: Any
    entries: tuple[Entry, ...]

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
