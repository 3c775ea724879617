"""What a suite needs of the machine; each check raises `Skip` with the reason."""

import os
import shutil

from .suite import Skip

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
os.environ["PATH"] = _PATH


def programs(*names):
    missing = [name for name in names if not shutil.which(name)]
    if missing:
        raise Skip("not installed: %s" % ", ".join(missing))


def root():
    if os.geteuid() != 0:
        raise Skip("needs root")


def tun():
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        raise Skip("the kernel has no usable /dev/net/tun: %s" % error) from error
