"""The one module that talks to numba: the `@kernel` decorator and where machine code is kept.

Numba's own cache looks at one file only: after an edit of a callee in another file the old machine code runs.  Here a
kernel is keyed by the text of its module and of every module that it imports, directly or not.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints

import numpy as np
from numba import __version__ as numba_version
from numba import config, typeof
from numba.core import event
from numba.core.caching import FunctionCache, UserProvidedCacheLocator
from numba.core.registry import CPUDispatcher
from numba.core.types import unliteral

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
Record = TypeVar("Record", bound=tuple[Any, ...])
KERNEL_PACKAGES = ("kernels", "models")
ROOT = Path(__file__).parents[1]
MAX_VERSIONS = 8  # of a module that are kept in the cache
KERNEL_MODULES = list[str]()  # the module of each kernel that is loaded
IMPORT_PATTERN = re.compile(
    rb"^(?:from|import) ((?:kernels|models)[\w.]*)(?: import (?:\(([^)]+)\)|([\w, ]+)))?", re.MULTILINE
)


@cache
def _sources() -> dict[str, bytes]:
    """Text of every module of the program by its dotted name, from a checkout or from inside the zip."""
    if ROOT.is_file():
        with zipfile.ZipFile(ROOT) as z:
            texts = {n: z.read(n) for n in z.namelist() if n.endswith(".py") and n.split("/")[0] in KERNEL_PACKAGES}
    else:
        files = (p for d in KERNEL_PACKAGES for p in (ROOT / d).rglob("*.py"))
        texts = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in files}
    return {n.removesuffix(".py").removesuffix("/__init__").replace("/", "."): text for n, text in texts.items()}


def _import_closure(module: str) -> list[str]:
    """`module` and every module of the program that it imports, directly or not, sorted."""
    seen, todo = set[str](), [module]
    while todo:
        name = todo.pop()
        if name in seen or name not in _sources():
            continue
        seen.add(name)
        for package, block, line in IMPORT_PATTERN.findall(_sources()[name]):
            todo.append(package.decode())
            todo += [f"{package.decode()}.{n.strip()}" for n in (block or line).decode().split(",")]
    return sorted(seen)


def _digest(names: list[str]) -> str:
    h = hashlib.sha256()
    for name in names:
        text = _sources()[name]
        h.update(f"{name}\0{len(text)}\0".encode() + text)
    return h.hexdigest()[:16]


@cache
def module_digest(module: str) -> str:
    """Hash of the text of `module` and of every module that it imports: its machine code depends on no other."""
    return _digest(_import_closure(module))


@cache
def program_digest() -> str:
    """Hash of the text of every kernel and model: the version of the program."""
    return _digest(sorted(_sources()))


@cache
def cache_root() -> Path:
    """`$SWT_CACHE_DIR` (or ~/.cache/swt)/kernels-<versions>; in the temporary directory if that is not writable."""
    flags = (numba_version, np.__version__, config.BOUNDSCHECK, config.OPT)  # type: ignore[attr-defined]
    key = hashlib.sha256(repr(flags).encode()).hexdigest()[:8]
    try:
        base = Path(os.environ.get("SWT_CACHE_DIR") or Path.home() / ".cache" / "swt")
        path = base / f"kernels-{key}"
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, RuntimeError) as error:
        path = _private_temp_dir() / f"kernels-{key}"
        path.mkdir(parents=True, exist_ok=True)
        print(f"swt: {error}: machine code goes to {path}, set SWT_CACHE_DIR", file=sys.stderr)
    return path


def _private_temp_dir() -> Path:
    """A folder for temporary files into which nobody else can put machine code."""
    if sys.platform == "win32":  # where each user has a temporary directory
        return Path(tempfile.gettempdir()) / "swt"
    path = Path(tempfile.gettempdir()) / f"swt-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return path
    return Path(tempfile.mkdtemp(prefix="swt-"))  # the folder is somebody else's: compile anew


@cache
def cache_dir(module: str) -> Path:
    """The folder of the machine code of `module`; removes the oldest versions beyond `MAX_VERSIONS`."""
    path = cache_root() / f"{module}-{module_digest(module)}"
    path.mkdir(exist_ok=True)
    os.utime(path)
    for stale in sorted(cache_root().glob(f"{module}-*"), key=_last_used)[:-MAX_VERSIONS]:
        shutil.rmtree(stale, ignore_errors=True)
    return path


def _last_used(path: Path) -> float:
    """Time of the last use; 0 where another process has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


class ProgramCacheLocator(UserProvidedCacheLocator):
    """Keys a kernel by the text of its module's import closure, not of its own file."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file = py_file
        self._module = py_func.__module__
        self._lineno = py_func.__code__.co_firstlineno
        self._cache_path = str(cache_dir(self._module))

    def get_source_stamp(self) -> str:
        """The key that numba compares before it loads a cached kernel."""
        return module_digest(self._module)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> ProgramCacheLocator | None:
        """A locator for functions of the program; None leaves any other function to numba's locators."""
        return cls(py_func, py_file) if py_func.__module__ in _sources() else None


config.CACHE_LOCATOR_CLASSES = (  # type: ignore[attr-defined]
    f"{__name__}.ProgramCacheLocator,UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator"
)


class ProgramCache(FunctionCache):
    """Loads machine code without the declarations that only the compiler reads; finds its files on first use.

    Numba imports all declarations before it loads one kernel: 0.2 s and 45 MB of a start from a warm cache, SciPy
    included where it is installed.  The compiler asks for them itself.  A start calls few of its kernels.
    """

    def __init__(self, py_func: Any, options: str) -> None:
        self._py_func, self._options = py_func, options

    def __getattr__(self, name: str) -> Any:
        """An attribute that is missing because no file has been looked for yet."""
        if "_cache_file" in vars(self):
            raise AttributeError(name)
        super().__init__(self._py_func)  # type: ignore[no-untyped-call]
        return getattr(self, name)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """The key of machine code: an inlined kernel may have some with an entry for Python and some without."""
        return (*super()._index_key(sig, codegen), self._options)  # type: ignore[no-untyped-call]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The cached machine code for a signature, or None."""
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]


class Kernel(CPUDispatcher):
    """Compiles once for the types of its arguments; numba would compile again for "the constant 0"."""

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """What the compiler of a caller asks."""
        plain: Any = unliteral
        return super().get_call_template([*map(plain, args)], {name: plain(kind) for name, kind in kws.items()})


class InlinedKernel(Kernel):
    """Has no entry for Python until Python calls it: reading a planner's 150 arrays is more code than most steps."""

    def __call__(self, *args: Any) -> Any:
        """Compile the entry at the first call from Python."""
        if "entry" not in vars(self):
            self.entry = _compiled(Kernel, self.py_func, forceinline=True)
        return self.entry(*args)


# Kernels write into arrays that their callers own.  Without numba's runtime they cannot allocate, and none of the
# views they take is reference-counted: the atomic counts were two thirds of a search outside the networks.  None is
# passed to another one as a value, for which numba would compile a wrapper.
OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}


def _compiled(kind: type[Kernel], fn: F, **options: Any) -> F:
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return fn
    dispatcher = kind(fn, targetoptions={**OPTIONS, **options})
    vars(dispatcher)["_cache"] = ProgramCache(fn, " ".join(options))
    KERNEL_MODULES.append(fn.__module__)
    return cast(F, dispatcher)


def kernel(fn: F) -> F:
    """Compile `fn`: cached, without the GIL, with C division and without allocation.

    For a type checker it returns `fn` itself, so calls stay checked.
    """
    return _compiled(Kernel, fn)


def inlined(fn: F) -> F:
    """Compile `fn` as a kernel that is inlined into its callers: for the small steps of a search."""
    return _compiled(InlinedKernel, fn, forceinline=True, no_cpython_wrapper=True)


def reassociated(fn: F) -> F:
    """Compile `fn` as a kernel whose sums the compiler may reassociate, so that they use the vector units.

    The compiler fixes the order: results are equal on one type of CPU, for any number of threads.
    """
    return _compiled(Kernel, fn, fastmath={"reassoc", "nsz"})


def specialize(fn: F, *arguments: Any) -> F:
    """The machine code of the kernel `fn` for arguments of these types; its calls do not check the types.

    For an agent, the check takes 25 us of a call, 100 us with cold caches.  Arguments of other types are memory errors:
    use it where a caller always passes the same arrays.
    """
    return cast(F, fn.compile(tuple(map(typeof, arguments))))  # type: ignore[attr-defined]


def constructor(record: Callable[P, Record]) -> Callable[[Callable[[Record], Record]], Callable[P, Record]]:
    """Make a check of the NamedTuple `record` its constructor, whose numbers have the types of their fields.

    Kernels compile once for each combination of the types of an argument: 1 and 1.0 would be two.
    """
    types = {name: kind for name, kind in get_type_hints(record).items() if kind in (bool, int, float)}

    def decorate(check: Callable[[Record], Record]) -> Callable[P, Record]:
        @wraps(check)
        def new(*args: P.args, **kwargs: P.kwargs) -> Record:
            fields: Any = check(record(*args, **kwargs))
            return cast(Record, fields._replace(**{name: kind(getattr(fields, name)) for name, kind in types.items()}))

        return new

    return decorate


class _CompileListener(event.Listener):
    """Reports each kernel of the program once, when its compilation starts."""

    def __init__(self, report: Callable[[int, int, str], None]) -> None:
        self._report = report
        empty = {module for module in set(KERNEL_MODULES) if not any(cache_dir(module).glob("*.nbi"))}
        self._num_new, self._reported = sum(module in empty for module in KERNEL_MODULES), set[str]()

    def on_start(self, event: Any) -> None:
        """Report the function that is compiled, for itself or for a caller."""
        function = event.data["dispatcher"].py_func
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        if function.__module__ in _sources() and name not in self._reported:
            self._reported.add(name)
            self._report(len(self._reported), self._num_new, name)

    def on_end(self, event: Any) -> None:
        """Nothing to report."""


@contextmanager
def watch_compiler(report: Callable[[int, int, str], None]) -> Iterator[None]:
    """Within the context, call report(number, new, name) for each kernel that is compiled.

    `new` counts the loaded kernels of modules without machine code in the cache; a training needs most of them.
    """
    with event.install_listener("numba:compile", _CompileListener(report)):
        yield
