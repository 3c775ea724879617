"""Writes to argv[1] which files an interpreter needs for the modules below, and prints its own path."""

import sys

# What asyncio does without.
sys.modules["ssl"] = None

import asyncio  # noqa: E402, F401
import concurrent.futures.thread  # noqa: E402, F401
import encodings.ascii  # noqa: E402, F401
import encodings.idna  # noqa: E402, F401
import encodings.latin_1  # noqa: E402, F401
import errno  # noqa: E402, F401
import json  # noqa: E402, F401
import os  # noqa: E402
import resource  # noqa: E402, F401
import socket  # noqa: E402, F401
import time  # noqa: E402, F401
import traceback  # noqa: E402, F401

python = os.path.realpath(sys.executable)
found = {python}
for module in list(sys.modules.values()):
    for name in ("__file__", "__cached__"):
        path = getattr(module, name, None)
        if path and os.path.exists(path):
            found.add(os.path.realpath(path))
# By this one the interpreter knows its folder.
found.add(os.path.realpath(os.__file__))
with open(sys.argv[1], "w") as out:
    out.writelines(path + "\n" for path in sorted(found))
print(python)
