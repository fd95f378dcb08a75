"""vLLM's CPU platform with LoRA by groups (see `vllm_lora`). Imported by vLLM alone."""

from vllm.platforms.cpu import CpuPlatform


class GroupedCpuPlatform(CpuPlatform):  # type: ignore[misc]  # vllm is untyped here
    """Differs in one class name."""

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return "arcd.backends.vllm.grouped_lora.GroupedPunica"
