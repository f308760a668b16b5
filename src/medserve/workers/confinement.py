"""A process gives up, for good, what decoding a picture does not need: writing, executing, connecting, core dumps.

What the system does not offer is left out: limits of resources exist on every Unix, Landlock on Linux since 5.13
(files), 6.7 (TCP) and 6.12 (signals). None of it needs root, and none of it can be undone by whoever takes the process
over.
"""

import ctypes
import os
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path

MEMORY = 3 * 2**30
"""Bytes of data that the process may hold: the largest series in every form it takes on its way to pixels."""
DESCRIPTORS = 128

_PR_SET_NO_NEW_PRIVS = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ABI_VERSION = 1
_BENEATH_PATH = 1
_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3
_REMOVE_DIRECTORY, _REMOVE_FILE, _MAKE_DIRECTORY, _MAKE_LINK = 1 << 4, 1 << 5, 1 << 7, 1 << 12
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
"""All that can be taken away, by version of the interface (linux/landlock.h)."""
_ALL_FILE_RIGHTS = (1 << 16) - 1
_TCP = 0b11
_SIGNALS_AND_ABSTRACT_SOCKETS = 0b11


def confine(folder: Path) -> None:
    """Limit memory, descriptors and files of this process, and keep it from changing anything but links in `folder`."""
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_DATA, MEMORY),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))
    if sys.platform == "linux":
        with suppress(OSError):
            _landlock(folder)


def limit_processor_time(seconds: float) -> None:
    """Have the system end this process when it works for `seconds` more, even where no Python code runs any more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime + seconds) + 2
    _soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (end, hard))


def _landlock(folder: Path) -> None:
    """Take away every right on files but reading, TCP, and signals to others; raises OSError where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ABI_VERSION))
    if version < 1:
        raise OSError(ctypes.get_errno(), "no Landlock")
    rules = _ruleset(libc, version)
    try:
        _allow(libc, rules, folder)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, rules, ctypes.c_uint32(0)):
            raise OSError(ctypes.get_errno(), "Landlock refused")
    finally:
        os.close(rules)


def _ruleset(libc: ctypes.CDLL, version: int) -> int:
    taken = _FILE_RIGHTS.get(version, _ALL_FILE_RIGHTS) & ~(_READ_FILE | _READ_DIRECTORY)
    fields = [taken, _TCP, _SIGNALS_AND_ABSTRACT_SOCKETS][: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if rules < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused")
    return int(rules)


def _allow(libc: ctypes.CDLL, rules: int, folder: Path) -> None:
    """Links and folders may come and go in `folder`: slides of several files are shown to their reader by links."""
    rights = _REMOVE_DIRECTORY | _REMOVE_FILE | _MAKE_DIRECTORY | _MAKE_LINK
    parent = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        libc.syscall(_ADD_RULE, rules, _BENEATH_PATH, struct.pack("=Qi", rights, parent), ctypes.c_uint32(0))
    finally:
        os.close(parent)
