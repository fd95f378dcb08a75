"""A platform plugin of vLLM: on a CPU vLLM applies adapters arcd's way (`grouped_lora`).

vLLM finds `plugin` through the entry point `vllm.platform_plugins` and calls it before it knows its
platform, so nothing here may import more of vLLM than `vllm.platforms`.
"""

import os

WANTED = "ARCD_GROUPED_LORA"
"""An environment variable that arcd's engine sets. Without it vLLM stays as it is: the plugin is
installed for every vLLM of this Python environment."""


def plugin() -> str | None:
    """The platform's class path, if arcd wants it and vLLM is built for CPUs; else None."""
    if os.environ.get(WANTED) != "1":
        return None
    from vllm.platforms import cpu_platform_plugin

    if cpu_platform_plugin() is None:
        return None
    return "arcd.backends.vllm.cpu_platform.GroupedCpuPlatform"
