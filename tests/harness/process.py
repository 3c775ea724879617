"""Processes that end with the test, and waiting that polls.

Every process is started with PR_SET_PDEATHSIG: when the test runner is killed, nothing that it started survives.
"""

import ctypes
import signal
import subprocess
import time

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _die_with_parent():
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(argv, log, stdin=subprocess.DEVNULL, **kwargs):
    """Starts `argv`, its output appended to the file `log`."""
    with open(log, "ab") as out:
        out.write(("$ " + " ".join(map(str, argv)).strip() + "\n").encode())
        out.flush()
        return subprocess.Popen(
            [str(a) for a in argv], stdin=stdin, stdout=out, stderr=out, preexec_fn=_die_with_parent, **kwargs
        )


def run(argv, timeout=60, check=True, input=None, env=None):
    """Runs `argv` to its end and returns what it printed. Raises with everything it said when it fails."""
    done = subprocess.run(
        [str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout,
        preexec_fn=_die_with_parent, errors="replace", env=env,
        **({"input": input} if input is not None else {"stdin": subprocess.DEVNULL}),
    )
    if check and done.returncode != 0:
        raise RuntimeError("%s: exit %d\n%s%s" % (" ".join(map(str, argv)), done.returncode, done.stdout, done.stderr))
    return done if not check else done.stdout


def kill(process):
    """Kills and reaps; nothing happens when it ended already."""
    if process.poll() is None:
        process.kill()
    process.wait(timeout=30)


def until(condition, what, timeout=60, every=0.1):
    """Polls until `condition()` is true and returns that value; exceptions count as not yet."""
    deadline = time.monotonic() + timeout
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value
            last = value
        except Exception as error:  # Whatever a half-started system answers: say so when time is up.
            if isinstance(error, TimeoutError) and getattr(error, "final", False):
                raise
            last = error
        if time.monotonic() > deadline:
            raise AssertionError("not within %d s: %s (last: %r)" % (timeout, what, last))
        time.sleep(every)
