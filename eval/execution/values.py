"""The plain values that pass between the program's process and the checker's, as JSON.

None, bool, str, float and small int are sent unchanged, everything else as [type, ...]. A subclass is sent as the plain type
that it derives from, so no method of the program is transferred: received values compare by their content. Iterators are
sent with their items. Anything else arrives as an `Other`, which equals only itself.

A function is sent by its number, and calling it on the other side is a message back (`eval.execution.inside`). The tests may
also send functions of the standard library by their names; from a program only the names of types are accepted, because a
function of its choice could act in the checker's process.

`eval.execution.inside` imports this file in the sandbox, with only the standard library.
"""

import builtins
import sys
from collections import OrderedDict, deque
from importlib import import_module
from itertools import islice

MAX_ITEMS = 100_000  # of an iterator
MAX_DEPTH = 200
SMALL = 1 << 53
SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque, "iterator": iter}
VIEWS = {
    name: (type(getattr({}, name)()), type(getattr(OrderedDict(), name)())) for name in ("keys", "values", "items")
}
FIXED = {"Ellipsis": ..., "NotImplemented": NotImplemented}
BUILT = {  # type → the arguments that build an equal value
    "builtins.slice": lambda value: (value.start, value.stop, value.step),
    "builtins.memoryview": lambda value: (value.tobytes(),),
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
    "decimal.Decimal": lambda value: (str(value),),
    "datetime.date": lambda value: (value.year, value.month, value.day),
    "datetime.datetime": lambda value: (*value.timetuple()[:6], value.microsecond, _zone(value)),
    "datetime.time": lambda value: (value.hour, value.minute, value.second, value.microsecond, _zone(value)),
    "datetime.timedelta": lambda value: (value.days, value.seconds, value.microseconds),
    "datetime.timezone": lambda value: (value.utcoffset(None),),
    "array.array": lambda value: (value.typecode, value.tolist()),
    "collections.UserDict": lambda value: (value.data,),
    "collections.UserList": lambda value: (value.data,),
    "collections.UserString": lambda value: (value.data,),
    "collections.ChainMap": lambda value: value.maps,
    "uuid.UUID": lambda value: (str(value),),
}
TYPES = {f"builtins.{name}" for name, kind in vars(builtins).items() if isinstance(kind, type)}
TYPES |= {"types.NoneType", "collections.deque", "collections.OrderedDict", "collections.Counter", *BUILT}


class Other:
    """A value of the other process that is not a plain value; it has no content here."""


class Received:
    """A function of the other process."""

    def __init__(self, number: int, functions: "Functions"):
        self.number, self.functions = number, functions

    def __call__(self, *args, **kwargs):
        return self.functions.ask(self.number, args, kwargs)


class Functions:
    """The functions that one process has sent and received.

    of_tests: whether this process is the checker's, which sends functions by name and accepts only types by name. ask: calls
    function `number` of the other process, with (number, args, kwargs).
    """

    def __init__(self, of_tests: bool, ask):
        self.of_tests, self.ask = of_tests, ask
        self.sent: list = []

    def send(self, function) -> list:
        """Return the JSON form of a function: its name, or its number, which it keeps."""
        if self.of_tests and (name := name_of(function)):
            return ["named", name]
        if type(function) is Received:
            return ["returned", function.number]
        known = [number for number, sent in enumerate(self.sent) if sent is function]
        if not known:
            self.sent.append(function)
        return ["function", known[0] if known else len(self.sent) - 1]

    def receive(self, form: str, what: str | int):
        """Return the function of a JSON form. Raises an Exception if it is not acceptable."""
        if form == "function":
            return Received(int(what), self)
        if form == "returned":
            return self.sent[what]
        if what in TYPES or not self.of_tests:
            return _attribute(what)
        raise ValueError("no value")


def name_of(value) -> str:
    """Return "module.name" if a module of the standard library has the value under its own name, else ""."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if value is type(None):
        module = "types"
    if (
        not isinstance(module, str)
        or not isinstance(name, str)
        or module.partition(".")[0] not in sys.stdlib_module_names
    ):
        return ""
    found = getattr(sys.modules.get(module), name, None)
    return f"{module}.{name}" if found is value else ""


def _attribute(name: str):
    module, _, rest = name.rpartition(".")
    return getattr(import_module(module), rest)


def _zone(value):
    """Return the offset of a time as a fixed zone, None without one."""
    offset = value.utcoffset()
    return offset if offset is None else import_module("datetime").timezone(offset)


# To and from JSON


def pack(value, functions: Functions | None = None, depth: int = 0):
    """Return the JSON form of `value`. Raises ValueError if it is nested too deep or an iterator is too long."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested more than {MAX_DEPTH} deep")
    if issubclass(kind, int):
        number = int.__index__(value)
        return number if -SMALL < number < SMALL else ["int", hex(number)]
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, (bytes, bytearray)):
        plain = bytes if issubclass(kind, bytes) else bytearray
        return [plain.__name__, plain.hex(value)]
    if issubclass(kind, complex):
        return ["complex", complex.__complex__(value).real, complex.__complex__(value).imag]
    return _pack_items(value, kind, lambda items: [pack(item, functions, depth + 1) for item in items], functions)


def _pack_items(value, kind: type, inner, functions: Functions | None) -> list:
    if issubclass(kind, dict):
        return ["dict", *map(inner, dict.items(value))]
    for name in ("list", "tuple", "set", "frozenset", "deque"):
        if issubclass(kind, SEQUENCES[name]):
            return [name, *inner(SEQUENCES[name].__iter__(value))]
    if kind is range:
        return ["range", *inner((value.start, value.stop, value.step))]
    for name, views in VIEWS.items():
        if kind in views:
            return [name, *inner(value)]
    for name, fixed in FIXED.items():
        if value is fixed:
            return [name]
    for base in kind.__mro__:
        if (name := name_of(base)) in BUILT:
            return ["built", name, *inner(BUILT[name](value))]
    if hasattr(kind, "__next__"):
        items = inner(islice(value, MAX_ITEMS + 1))
        if len(items) > MAX_ITEMS:
            raise ValueError(f"an iterator does not end within {MAX_ITEMS} items")
        return ["iterator", *items]
    if isinstance(value, type):
        return ["named", name_of(value)] if name_of(value) in TYPES else ["other"]
    return functions.send(value) if functions and callable(value) else ["other"]


def unpack(data, functions: Functions | None = None):
    """Return the value of a JSON form. Raises any Exception for invalid data."""
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise ValueError("no value")
    name, *items = data
    if name in ("named", "function", "returned"):
        return (functions or Functions(True, None)).receive(name, *items)
    if name == "dict":
        return {unpack(key, functions): unpack(item, functions) for key, item in items}
    if name == "int":
        return int(items[0], 16)
    if name in ("bytes", "bytearray"):
        return getattr(builtins, name).fromhex(items[0])
    if name == "complex":
        return complex(float(items[0]), float(items[1]))
    if name == "other":
        return Other()
    if name in FIXED:
        return FIXED[name]
    values = [unpack(item, functions) for item in items]
    if name == "built" and values[0] in BUILT:
        return _attribute(values[0])(*values[1:])
    if name == "range":
        return range(*values)
    if name in SEQUENCES:
        return SEQUENCES[name](values)
    if name in VIEWS:
        made = (
            dict(enumerate(values)) if name == "values" else dict(values) if name == "items" else dict.fromkeys(values)
        )
        return getattr(made, name)()
    raise ValueError("no value")


def restore(old, new) -> None:
    """Give an argument the content that the program left in it."""
    if type(old) is not type(new):
        return
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)
    elif isinstance(old, deque):
        old.clear()
        old.extend(new)
    elif isinstance(old, tuple):
        for before, after in zip(old, new, strict=False):
            restore(before, after)
