"""Whether the kernel mirror can be had here."""

import functools
import os

from support.namespaces import Namespace, why_no_namespaces


@functools.cache
def why_no_mirror() -> str:
    """Empty when this process can load and attach the BPF program, else the reason."""
    if os.geteuid() != 0:
        return "the mirror needs root"
    reason = why_no_namespaces()
    if reason:
        return reason
    try:
        from reflector import _mirror
    except ImportError as error:
        return f"the mirror was not built: {error}"
    alone = Namespace("alone")
    try:
        with alone:
            _mirror.Mirror(1, 16).close()
    except OSError as error:
        return f"no BPF here: {error}"
    finally:
        alone.close()
    return ""
