"""What XLA is told before JAX starts, so that a processor's numbers are right.

jaxlib 0.10.2 fuses sums into products on a CPU and gets some of them wrong (jax-ml/jax issue 39103: a sum of squares of
`matrix @ row`, mapped over more than 32,768 rows). Importing robgrad switches that fusion off, unless `XLA_FLAGS` say
otherwise. Releases before and after it need nothing.
"""

import importlib.metadata
import os
import sys
import warnings

_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
# By the release of jaxlib, since an XLA that does not know a flag refuses to start.
SAFE_FLAGS = {"0.10.2": f"{_FUSION}=individual_dot"}
# What the user had set before robgrad was imported: programs may choose anything else.
GIVEN = os.environ.get("XLA_FLAGS", "")


def safe_flags(given: str, jaxlib: str) -> str:
    """`XLA_FLAGS` with what a release of jaxlib needs to be right, never against what is given."""
    needed = SAFE_FLAGS.get(jaxlib, "")
    return f"{given} {needed}".strip() if needed and needed.split("=")[0] not in given else given


def set_safe_flags() -> None:
    """Sets `XLA_FLAGS` for this process; warns where JAX has started already, and reads them no more."""
    given = os.environ.get("XLA_FLAGS", "")
    wanted = safe_flags(given, _release())
    if wanted == given:
        return
    if _started():
        warnings.warn(
            f"jaxlib {_release()} gives wrong numbers on a CPU unless it is told '{SAFE_FLAGS[_release()]}', and JAX "
            "has started without: import robgrad before the first computation, or set XLA_FLAGS",
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = wanted


def flags() -> str:
    """The flags of XLA that are in force in this process, as `XLA_FLAGS` has them."""
    return os.environ.get("XLA_FLAGS", "")


def _release() -> str:
    try:
        return importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _started() -> bool:
    """Whether JAX has made its backends; `import jax` alone does not."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and getattr(bridge, "backends_are_initialized", lambda: False)()
