"""vLLM's CPU platform, with arcd's way to apply adapters; a vLLM platform plugin.

vLLM finds `plugin` through the entry point `vllm.platform_plugins` and asks it for a platform while
its own is not known yet, so nothing here may import more of vLLM than `vllm.platforms.cpu`.
"""

import os

WANTED = "ARCD_GROUPED_LORA"
"""Set by arcd's engine; everybody else's vLLM on this machine stays as it is."""


def plugin() -> str | None:
    """The platform's name, where it is wanted and vLLM is built for CPUs."""
    if os.environ.get(WANTED) != "1":
        return None
    from vllm.platforms import cpu_platform_plugin

    if cpu_platform_plugin() is None:
        return None
    return "arcd.backends.vllm.cpu_platform.GroupedCpuPlatform"
