"""A workflow can be a YAML file: questions, how they are read, when to stop or flag, and what to conclude.

A file is checked as a whole before anything runs, and every fault is told with its line. It can do what a workflow in
Python can do with closed questions, text and JSON; it holds no code.
"""

from medserve.protocols.reading import MOST_BYTES, Folder, content, faults, load, parsed, read

__all__ = ["MOST_BYTES", "Folder", "content", "faults", "load", "parsed", "read"]
