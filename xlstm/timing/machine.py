"""What a measurement ran on, without torch: the processor and the versions that shape its times."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "triton", "transformers")


def processor_name() -> str:
    """Model of the CPU as the kernel names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(named, platform.machine())
    except OSError:
        return platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages behind the times; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
