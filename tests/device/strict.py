"""A device as strict as a GPU, made of the host's memory: what runs on it should run on CuPy, too.

Its arrays are no NumPy arrays. Like CuPy's they refuse to be mixed with NumPy arrays or to be taken for one; scalars
may be mixed in, and single elements are 0-d arrays. `Strict().xp` has the functions in use, with the arguments that
CuPy's have (14.2): a new one is looked up there first, then added here. Only to_device, to_host and refill cross over,
and `crossings` counts them.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.places import BATCHES_AT_HAND

UFUNC = ("out", "dtype", "casting")
FUNCTIONS = {
    "abs": UFUNC,
    "add": UFUNC,
    "arange": ("dtype",),
    "argmax": ("axis", "dtype", "out", "keepdims"),
    "ascontiguousarray": ("dtype",),
    "clip": (),
    "divide": UFUNC,
    "dot": ("out",),
    "empty": ("dtype",),
    "equal": UFUNC,
    "exp": UFUNC,
    "greater": UFUNC,
    "greater_equal": UFUNC,
    "log": UFUNC,
    "matmul": ("out",),
    "max": ("axis", "out", "keepdims"),
    "maximum": UFUNC,
    "multiply": UFUNC,
    "rint": UFUNC,
    "sqrt": UFUNC,
    "subtract": UFUNC,
    "sum": ("axis", "dtype", "out", "keepdims"),
    "take": ("axis", "out"),  # no mode
    "where": (),
    "zeros": ("dtype",),
    "zeros_like": ("dtype",),
}
TYPES = ("bool_", "float32", "float64", "int32", "int64", "uint8", "uint32")


IN_PLACE = ("iadd", "isub", "imul", "itruediv")
VIEWS = ("reshape", "ravel", "view")


class Stream:
    """Where work is done: at once, unless a test puts another stream in its place (recording.py)."""

    def launch(self, name: str, work: Callable[[], Any]) -> None:
        """Work on arrays that are there."""
        work()

    def allocate(self, name: str, work: Callable[[], Any]) -> Any:
        """Work that makes an array."""
        return work()

    def wait(self, name: str) -> None:
        """The host looks at a result."""


STREAM = Stream()


class StrictArray:
    """An array that only the functions and methods here can see into."""

    __slots__ = ("_values",)
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None  # a NumPy array or scalar beside it leaves the operation to the methods below

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, *arguments: Any, **keywords: Any) -> Any:
        raise TypeError("a device array is no NumPy array: use Device.to_host")

    def __array_function__(self, function: Any, *arguments: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called with a device array: use Device.xp")

    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    strides = property(lambda self: self._values.strides)
    itemsize = property(lambda self: self._values.itemsize)
    data = property(lambda self: SimpleNamespace(ptr=self._values.ctypes.data))
    T = property(lambda self: StrictArray(self._values.T))

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: Any) -> StrictArray:
        key = key if isinstance(key, tuple) else (key,)
        key = key if any(part is Ellipsis for part in key) else (*key, ...)  # so that single elements are views as well
        if any(isinstance(part, StrictArray) for part in key):  # no view: elements are looked up
            return outside(STREAM.allocate("lookup", lambda: self._values[inside(key)]))
        return StrictArray(self._values[inside(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        STREAM.launch("set", lambda: self._values.__setitem__(inside(key), inside(value)))

    def __repr__(self) -> str:
        return f"StrictArray({self._values!r})"

    # What waits for the device, as in CuPy.

    def __float__(self) -> float:
        STREAM.wait("float")
        return float(self._values)

    def __int__(self) -> int:
        STREAM.wait("int")
        return int(self._values)

    def __bool__(self) -> bool:
        STREAM.wait("bool")
        return bool(self._values)


def inside(value: Any) -> Any:
    """The values of device arrays, also in a tuple; scalars as they are; NumPy arrays are refused."""
    if isinstance(value, tuple):
        values = map(inside, value)
        return type(value)(*values) if hasattr(value, "_fields") else tuple(values)
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array among device arrays: use Device.to_device")
    return value._values if isinstance(value, StrictArray) else value


def outside(value: Any) -> Any:
    """Arrays, also 0-d ones, as device arrays."""
    return StrictArray(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def _operator(apply: Callable[[Any, Any], Any], swapped: bool = False) -> Callable[..., Any]:
    """a + b, b + a or a += b of arrays and scalars."""

    def method(self: StrictArray, other: Any) -> StrictArray:
        if not isinstance(other, (StrictArray, np.generic, int, float)):
            raise TypeError(f"{apply.__name__} of a device array and {type(other).__name__}")
        operands = (inside(other), self._values) if swapped else (self._values, inside(other))
        if apply.__name__ in IN_PLACE:
            STREAM.launch(apply.__name__, lambda: apply(*operands))
            return self
        return StrictArray(np.asarray(STREAM.allocate(apply.__name__, lambda: apply(*operands))))

    return method


def _method(name: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    def method(self: StrictArray, *positional: Any, **keywords: Any) -> Any:
        unknown = keywords.keys() - set(arguments)
        if unknown:
            raise TypeError(f"ndarray.{name} of CuPy has no argument {unknown}")
        given = {key: inside(value) for key, value in keywords.items()}

        def work() -> Any:
            return getattr(self._values, name)(*map(inside, positional), **given)

        if name in VIEWS:
            return outside(work())
        if name == "fill" or keywords.get("out") is not None:
            STREAM.launch(name, work)
            return keywords.get("out")
        return outside(STREAM.allocate(name, work))

    return method


for _name in "add sub mul truediv xor and or rshift lshift lt le gt ge eq ne iadd isub imul itruediv".split():
    setattr(StrictArray, f"__{_name}__", _operator(getattr(operator, f"__{_name}__")))
for _name in "add sub mul truediv xor and or".split():
    setattr(StrictArray, f"__r{_name}__", _operator(getattr(operator, f"__{_name}__"), swapped=True))
for _name, _arguments in {
    "argmax": ("axis", "dtype", "out", "keepdims"),
    "astype": ("copy",),
    "copy": (),
    "fill": (),
    "max": ("axis", "out", "keepdims"),
    "min": ("axis", "out", "keepdims"),
    "ravel": (),
    "reshape": (),
    "sum": ("axis", "dtype", "out", "keepdims"),
    "view": (),
}.items():
    setattr(StrictArray, _name, _method(_name, _arguments))


class StrictModule(ModuleType):
    """The array module: the functions above and the scalar types, and no others."""

    def __init__(self) -> None:
        super().__init__("strict")
        for name, arguments in FUNCTIONS.items():
            setattr(self, name, _function(name, arguments))
        for name in TYPES:
            setattr(self, name, getattr(np, name))


def _function(name: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    apply = getattr(np, name)

    def function(*positional: Any, **keywords: Any) -> Any:
        unknown = keywords.keys() - set(arguments)
        if unknown:
            raise TypeError(f"cupy.{name} has no argument {unknown}")

        def work() -> Any:
            return apply(*map(inside, positional), **{key: inside(value) for key, value in keywords.items()})

        out = keywords.get("out")
        if out is not None:
            if any(_copied(one, out) for one in positional):
                STREAM.allocate(f"a copy for {name}", lambda: None)
            STREAM.launch(name, work)
            return out
        if name == "ascontiguousarray" and inside(positional[0]).flags.c_contiguous:
            return positional[0]
        return outside(STREAM.allocate(name, work))

    return function


def _copied(given: Any, out: StrictArray) -> bool:
    """CuPy copies what shares its memory with the result before it begins, but for the very array object."""
    return isinstance(given, StrictArray) and given is not out and np.may_share_memory(inside(given), inside(out))


class Landing:
    """A device.places.Landing, filled by launches."""

    def __init__(self, most: int, features: int, dtype: Any) -> None:
        self.landed, self.room = 0, BATCHES_AT_HAND * most
        self.images = StrictArray(np.zeros((self.room, features), dtype))
        self.labels = StrictArray(np.zeros(self.room, np.int32))

    def bring(self, count: int, taken: Any) -> None:
        first = self.landed
        for images, labels, chosen in taken:
            places = np.arange(self.landed, self.landed + len(chosen)) % self.room
            self._launch(places, images[chosen], labels[chosen])
            self.landed += len(chosen)
        assert self.landed == first + count

    def _launch(self, places: np.ndarray, images: np.ndarray, labels: np.ndarray) -> None:
        def work() -> None:
            inside(self.images)[places], inside(self.labels)[places] = images, labels

        STREAM.launch("land", work)


class Strict:
    """A Device of such arrays."""

    kind = "strict"
    place = ""
    lacks = ""
    apart = 4
    measures = False
    can_capture = True

    def __init__(self) -> None:
        self.xp: ModuleType = StrictModule()
        self.kernels = Expressions(self.xp)
        self.crossings: Counter[str] = Counter()

    def to_device(self, array: np.ndarray) -> Any:
        assert isinstance(array, np.ndarray)
        self.crossings["to_device"] += 1
        return StrictArray(array.copy())

    def to_host(self, array: Any) -> np.ndarray:
        assert isinstance(array, StrictArray)
        self.crossings["to_host"] += 1
        return array._values.copy()

    def landing(self, most: int, features: int, dtype: Any) -> Any:
        return Landing(most, features, dtype)

    def refill(self, array: Any, values: np.ndarray) -> None:
        assert isinstance(array, StrictArray)
        assert isinstance(values, np.ndarray)
        self.crossings["refill"] += 1
        array._values[...] = values

    def storage(self, precision: str) -> Any:
        return np.float32

    def rounds(self, precision: str) -> bool:
        return precision != "float32"

    def empty_bytes(self, count: int) -> Any:
        return StrictArray(np.empty(count, np.uint8))

    def synchronize(self) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def time(self, replays: Any) -> list[float]:
        return [0.0 for _ in replays]

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def fetch(self, array: Any, pinned: np.ndarray) -> None:
        pinned[...] = array._values

    def put(self, pinned: np.ndarray, array: Any) -> None:
        array._values[...] = pinned

    def mark(self) -> Callable[[], None]:
        return self.synchronize

    def describe(self) -> str:
        return "strict"
