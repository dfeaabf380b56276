"""Numba's pipeline, ended in another way: functions become parts, and parts become one library of machine code.

Numba optimises a called function by itself and makes machine code of it, then links it into its caller, where all is done again,
level by level. Here a function is lowered to LLVM code and waits: what a kernel calls is optimised and made into machine code once,
which takes a third less time, and several kernels may share a library. A library loaded from disk is machine code alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any, NamedTuple

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys  # type: ignore[attr-defined]
from numba.core.serialize import dumps
from numba.core.typed_passes import NativeLowering, NativeParforLowering

__all__ = ["Entry", "Library", "PartCompiler"]


class _Part(JITCodeLibrary):
    """The code of a function, with that of the functions it calls."""

    def finalize(self) -> None:
        """Link, without optimising or making machine code."""
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


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


class PartCompiler(CompilerBase):
    """Numba's pipeline for compiled functions, up to parts."""

    def define_pipelines(self) -> list[Any]:
        """The usual one, with another end."""
        usual = DefaultPassBuilder.define_nopython_pipeline(self.state)
        usual.passes = [(_INSTEAD.get(each, each), text) for each, text in usual.passes]
        usual._finalized = False
        usual.finalize()
        return [usual]


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
        code = context.codegen().create_library(name)
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
