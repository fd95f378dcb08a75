"""vLLM's CPU platform with adapters applied by `grouped_lora`. Imported by vLLM alone."""

from vllm.platforms.cpu import CpuPlatform


class GroupedCpuPlatform(CpuPlatform):  # type: ignore[misc]  # vllm is untyped here
    """Differs from vLLM's in the class that applies adapters."""

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return "arcd.backends.vllm.grouped_lora.GroupedPunica"
