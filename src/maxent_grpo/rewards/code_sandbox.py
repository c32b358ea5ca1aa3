"""Confined interpreters for code rewards: one runs a completion, one judges it. Standard library only.

Started by `code` as ``python -I -S code_sandbox.py ROLE …``, a process for each role:

- ``candidate`` executes the completion's program and calls its functions on request;
- ``judge`` executes the tests. Names that the program defines are proxies there: a call sends plain arguments to the
  candidate and gets a plain value back. Expected values, comparisons and the verdict never leave the judge;
- ``program`` executes a program on standard input and output, for an expected text that only the parent knows.

Every role first gives up what it may do (`confine`): the kernel lets it read Python's own files, compute and use the
pipes that it was given, and nothing else.
"""

import builtins
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

# -- What the kernel lets a process do -----------------------------------------------------------------------------

SYSCALLS = {
    "x86_64": (
        0xC000003E,
        "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 32 33 34 35 36 38 "
        "39 60 61 63 78 79 80 89 96 98 99 100 102 104 107 108 110 111 131 158 186 201 202 204 213 217 "
        "218 219 221 228 229 230 231 232 233 257 262 267 269 270 271 273 281 290 291 292 293 295 318 324 "
        "332 334 439 ",
        72,
        56,
    ),
    "aarch64": (
        0xC00000B7,
        "17 19 20 21 22 23 24 29 48 49 56 57 59 61 62 63 64 65 66 67 69 72 73 78 79 80 93 94 96 98 99 "
        "102 103 113 114 115 123 124 128 132 134 135 139 153 160 165 169 172 173 174 175 176 177 178 179 "
        "214 215 216 222 223 226 227 232 233 260 278 283 291 293 439 ",
        25,
        220,
    ),
}
"""Machine → audit architecture; the system calls that computing needs (memory, files, pipes, clocks, signals' own
handlers); the numbers of ``fcntl``, of which a few commands are allowed, and of ``clone``, which is for threads alone.
Everything else fails with EPERM: sockets, processes, programs, signals to others, permissions, mounts, tracing."""

_CLONE3, _CLONE_THREAD, _EPERM, _ENOSYS = 435, 0x10000, 1, 38
_F_GETLK, _DUPFD_CLOEXEC = 5, 1030
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 1 << 2 | 1 << 3  # files and directories
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")

libc = ctypes.CDLL(None, use_errno=True)


def missing_confinement() -> str:
    """Why this machine cannot confine a process; "" where it can."""
    if sys.platform != "linux" or platform.machine() not in SYSCALLS:
        return f"{sys.platform} on {platform.machine()} has no seccomp filter that is known here"
    if libc.syscall(_LANDLOCK_CREATE, None, 0, 1) < 1:
        return "the kernel has no Landlock (Linux 5.13 or newer, enabled)"
    return ""


def confine() -> None:
    """Give up everything but reading Python's files, computing, and the open pipes. Cannot be undone.

    Landlock forbids every file but those of `_LIBRARIES`, `_DEVICES` and ``sys.path``, and every write; a seccomp
    filter allows the calls of `SYSCALLS`. Raises `OSError` where the kernel refuses.
    """
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _restrict_files([*sys.path, *_LIBRARIES, os.path.join(sys.base_prefix, "lib")])
    _restrict_calls()


def _restrict_files(readable: list[str]) -> None:
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    handled = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    rules = struct.pack("=QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _check(libc.syscall(_LANDLOCK_CREATE, rules[:size], size, 0))
    for path, rights in [
        *((path, _READ) for path in readable),
        *((path, 1 << 1 | 1 << 2) for path in _DEVICES),
    ]:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            rights &= 1 << 1 | 1 << 2
        _check(libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights & handled, opened), 0))
        os.close(opened)
    _check(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0))
    os.close(ruleset)


def _restrict_calls() -> None:
    architecture, numbers, fcntl, clone = SYSCALLS[platform.machine()]
    # BPF: load a word, jump if equal, if at least, if any bit; return. Words: 0 the call, 4 the architecture, 16 and 24
    # the low halves of its first two arguments.
    load, equal, least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent = 0x7FFF0000, 0x00050000 | _EPERM, 0x00050000 | _ENOSYS
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, refuse), (load, 0, 0, 0)]
    for number in map(int, numbers.split()):
        program += [(equal, 0, 1, number), (give, 0, 0, allow)]
    program += [(equal, 0, 1, _CLONE3), (give, 0, 0, absent)]  # the C library falls back to clone
    program += [(equal, 0, 3, clone), (load, 0, 0, 16), (bits, 0, 1, _CLONE_THREAD), (give, 0, 0, allow)]
    program += [
        (equal, 0, 4, fcntl),
        (load, 0, 0, 24),
        (equal, 1, 0, _DUPFD_CLOEXEC),
        (least, 1, 0, _F_GETLK),
    ]
    program += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    text = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(text))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, described, 0, 0))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# -- Values between the processes ----------------------------------------------------------------------------------

Wire = Any
"""A value as JSON: numbers, texts and null as they are, everything else as {tag: content}."""

_SEQUENCES = {"l": list, "t": tuple, "s": set, "f": frozenset, "q": deque}


class Remote:
    """An object of the candidate that is no plain value, held there under a number. Equal to itself alone."""

    def __init__(self, judge: "Judge", number: int) -> None:
        self.__dict__["_judge"], self.__dict__["_number"] = judge, number

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._judge.ask("call", self, *args, **named)

    def __getattr__(self, name: str) -> Any:
        return self._judge.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._judge.ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._judge.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._judge.ask("setitem", self, key, value)

    def __iter__(self) -> Any:
        return iter(self._judge.ask("list", self))

    def __next__(self) -> Any:
        return self._judge.ask("next", self)

    def __len__(self) -> int:
        return int(self._judge.ask("len", self))

    def __bool__(self) -> bool:
        return bool(self._judge.ask("bool", self))

    def __str__(self) -> str:
        return str(self._judge.ask("str", self))

    __repr__ = __str__

    def __contains__(self, item: Any) -> bool:
        return item in list(self)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


class Objects:
    """What cannot travel, by the number that travels for it."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    def pack(self, value: Any) -> Wire:
        """``value`` for the other process. Subclasses of plain types go as the plain type."""
        if value is None or type(value) in (bool, str, int, float):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, (int, float)):
            return int.__int__(value) if isinstance(value, int) else float.__float__(value)
        for tag, kind in _SEQUENCES.items():
            if isinstance(value, kind):
                return {tag: [self.pack(item) for item in kind.__iter__(value)]}
        if isinstance(value, dict):
            return {"d": [[self.pack(key), self.pack(item)] for key, item in dict.items(value)]}
        if isinstance(value, (bytes, bytearray)):
            return {"b": bytes(value).hex()}
        if isinstance(value, complex):
            return {"c": [value.real, value.imag]}
        if isinstance(value, range):
            return {"r": [value.start, value.stop, value.step]}
        if isinstance(value, Fraction):
            return {"F": [value.numerator, value.denominator]}
        if isinstance(value, Decimal):
            return {"D": str(value)}
        if isinstance(value, Remote):
            return {"yours": value._number}
        self.held.append(value)
        return {"mine": len(self.held) - 1}

    def unpack(self, wire: Wire) -> Any:
        """The value that the other process packed."""
        if not isinstance(wire, dict):
            return wire
        ((tag, content),) = wire.items()
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](self.unpack(item) for item in content)
        if tag == "d":
            return {self.unpack(key): self.unpack(item) for key, item in content}
        if tag == "yours":
            return self.held[content]
        plain: dict[str, Any] = {
            "b": bytes.fromhex,
            "c": lambda parts: complex(*parts),
            "r": lambda parts: range(*parts),
            "F": lambda parts: Fraction(*parts),
            "D": Decimal,
            "mine": self.foreign,
        }
        return plain[tag](content)

    def foreign(self, number: int) -> Any:
        """What stands here for an object of the other process."""
        raise NotImplementedError


class Line:
    """JSON values over two pipes, a line each."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads = os.fdopen(reads, "r", encoding="ascii")
        self._writes = os.fdopen(writes, "w", encoding="ascii")

    def send(self, message: Wire) -> None:
        self._writes.write(json.dumps(message) + "\n")
        self._writes.flush()

    def receive(self) -> Wire:
        """The next message. Raises `EOFError` where the other side is gone."""
        line = self._reads.readline()
        if not line.endswith("\n"):
            raise EOFError
        return json.loads(line)


# -- The candidate -------------------------------------------------------------------------------------------------


class Candidate(Objects):
    """Runs the program and what the judge asks of it."""

    def __init__(self, line: Line, program: str) -> None:
        super().__init__()
        self.line, self.program = line, program
        self.names: dict[str, Any] = {}

    def serve(self) -> None:
        while True:
            try:
                verb, *wires = self.line.receive()
            except EOFError:
                return
            self.line.send(self.reply(verb, wires))

    def reply(self, verb: str, wires: list[Wire]) -> Wire:
        try:
            arguments = [self.unpack(wire) for wire in wires]
            value = getattr(self, f"do_{verb}")(*arguments)
            # Arguments that a function may have changed in place go back.
            return {"value": self.pack(value), "arguments": [self.pack(argument) for argument in arguments]}
        # A completion may raise anything, SystemExit too; the judge is told and decides.
        except BaseException as error:  # noqa: BLE001
            return {"raised": type(error).__name__, "text": str(error)[:500]}

    def foreign(self, number: int) -> Any:
        def call(*args: Any) -> Any:  # a function of the tests, as a key for sorting say
            self.line.send({"call": number, "arguments": [self.pack(argument) for argument in args]})
            return self.unpack(self.line.receive())

        return call

    def do_run(self) -> list[str]:
        """Execute the program afresh; the names that it defines."""
        self.names = {"__name__": "__main__", "exit": sys.exit, "quit": sys.exit}
        exec(compile(self.program, "completion.py", "exec"), self.names)
        return list(self.names)

    def do_name(self, name: str) -> Any:
        return self.names[name]

    def do_call(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return function(*args, **named)

    do_getattr: Any = staticmethod(getattr)
    do_setattr: Any = staticmethod(setattr)
    do_list: Any = staticmethod(list)
    do_next: Any = staticmethod(next)
    do_len: Any = staticmethod(len)
    do_bool: Any = staticmethod(bool)
    do_str: Any = staticmethod(str)

    def do_getitem(self, holder: Any, key: Any) -> Any:
        return holder[key]

    def do_setitem(self, holder: Any, key: Any, value: Any) -> None:
        holder[key] = value


# -- The judge -----------------------------------------------------------------------------------------------------


class Judge(Objects):
    """Executes tests against a candidate."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line

    def foreign(self, number: int) -> Any:
        return Remote(self, number)

    def ask(self, verb: str, *args: Any, **named: Any) -> Any:
        """What the candidate answers. Raises what it raised: a built-in exception, else `Exception`."""
        sent = [args[0], list(args[1:]), named] if verb == "call" else list(args)
        self.line.send([verb, *map(self.pack, sent)])
        while "call" in (answer := self.line.receive()):
            function = self.held[answer["call"]]
            self.line.send(self.pack(function(*map(self.unpack, answer["arguments"]))))
        if "raised" in answer:
            kind = getattr(builtins, answer["raised"], Exception)
            raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else Exception)(
                answer["text"]
            )
        changed = [self.unpack(wire) for wire in answer["arguments"]]
        for mine, theirs in zip(sent, changed, strict=True):
            _update(mine, theirs)
        return self.unpack(answer["value"])

    def passes(self, test: str, all_tests: list[str]) -> bool:
        """Whether the program runs to its end and ``test`` raises nothing."""
        defined = set(self.ask("run"))
        names = Names(self, defined, shadowed(all_tests, defined))
        names["__name__"] = "__main__"
        exec(compile(test, "test.py", "exec"), names)
        return True


class Names(dict[str, Any]):
    """The names of a test: its own, Python's, and those that the program defines."""

    def __init__(self, judge: Judge, defined: set[str], shadowed: set[str]) -> None:
        super().__init__()
        self._judge, self._defined, self._shadowed = judge, defined, shadowed

    def __missing__(self, name: str) -> Any:
        if name not in self._defined or (hasattr(builtins, name) and name not in self._shadowed):
            raise KeyError(name)
        return self._judge.ask("name", name)


def shadowed(tests: list[str], defined: set[str]) -> set[str]:
    """Built-in names for which the tests mean the program's own function: each test calls it, and none any other.

    A task may ask for a function called ``sum``; a program that redefines ``len`` to please a test that measures with
    it shall not.
    """
    called = [set(compile(test, "test.py", "exec").co_names) for test in tests]
    used = set().union(*called) & defined
    if any(not hasattr(builtins, name) for name in used):
        return set()
    return used.intersection(*called) if called else set()


def _update(mine: Any, theirs: Any) -> None:
    """Make a list, dictionary or set what the candidate made of its copy, and so for those inside it."""
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, (list, tuple)) and len(mine) == len(theirs):
        for position, (inner, changed) in enumerate(zip(mine, theirs, strict=True)):
            if isinstance(inner, (list, tuple, dict, set, deque)):
                _update(inner, changed)
            elif isinstance(mine, list):
                mine[position] = changed
    elif isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, (dict, set, deque)):
        mine.clear()
        (mine.extend if isinstance(mine, deque) else mine.update)(theirs)


# -- Starting ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Take up the role ``sys.argv[1]``; ``argv[2]`` is JSON with limits and descriptors."""
    role, told = sys.argv[1], json.loads(sys.argv[2])
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for name, limit in told["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    work = json.loads(os.fdopen(told["work"], "rb").read())
    if told["confined"]:
        confine()
    sys.set_int_max_str_digits(0)
    if role == "program":
        exec(compile(work["program"], "completion.py", "exec"), {"__name__": "__main__", "exit": sys.exit})
    elif role == "candidate":
        Candidate(Line(*told["line"]), work["program"]).serve()
    else:
        verdicts = os.fdopen(told["verdicts"], "w", encoding="ascii")
        judge = Judge(Line(*told["line"]))
        for number, test in enumerate(work["tests"]):
            try:
                verdict = judge.passes(test, work["all_tests"])
            except (EOFError, BrokenPipeError):
                return  # the candidate is gone: this test has failed
            # Tests fail by raising, whatever it is.
            except BaseException:  # noqa: BLE001
                verdict = False
            verdicts.write(f"{number} {int(verdict)}\n")
            verdicts.flush()


if __name__ == "__main__":
    main()
