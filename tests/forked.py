"""A process that has imported the frameworks, and forks one for each command that it reads.

To import TensorFlow takes seconds, which a suite that starts hundreds of commands would pay every
time. What is forked has the frameworks imported and nothing else in common with the others: its
arguments, environment, folder and streams are its own, edgekit's verbs are imported anew, and it
leaves as any process does. One JSON object a line on stdin, one exit status a line on stdout.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import sys
from typing import Any


def imported() -> None:
    """What takes long of what edgekit's verbs import.

    Not onnxruntime: it starts a thread, which a fork lacks, and waits for it at the end.
    """
    from edgekit.sources import keras

    keras.tf_keras()
    import ai_edge_litert.interpreter  # noqa: F401
    import scipy.stats  # noqa: F401
    import tensorflow_model_optimization  # noqa: F401
    import tf2onnx  # noqa: F401

    assert "onnxruntime" not in sys.modules


def served() -> dict[str, Any] | None:
    """In a forked process the command that it is to run; in this one, at the end, None."""
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            return dict(asked)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)
    return None


def become(asked: dict[str, Any]) -> None:
    """Take the environment, folder, streams and arguments of a command."""
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["folder"])
    for number, path in ((1, asked["stdout"]), (2, asked["stderr"])):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, number)
        os.close(stream)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.path[0] = asked["folder"]
    sys.argv = ["-m", *asked["arguments"]]
    signal.alarm(asked["seconds"])  # which ends it


if __name__ == "__main__":
    imported()
    gc.collect()
    gc.freeze()  # pages that nobody writes to are shared
    command = served()
    if command is not None:
        become(command)
        runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
