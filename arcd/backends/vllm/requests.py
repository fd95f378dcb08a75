"""Requests as vLLM takes them, and its outputs as completions. Imports nothing of vLLM."""

from collections.abc import Sequence
from typing import Any

from arcd.backends.protocols import Completion, Request
from arcd.errors import SampleRefused


def prompt(request: Request) -> list[int]:
    """What vLLM reads; where the answer is given, it is a part of that."""
    return [*request.question.tokens, *(request.answer or ())]


def sampling_arguments(request: Request, answer_tokens: Sequence[int], end: int) -> dict[str, Any]:
    """The keyword arguments of vLLM's `SamplingParams` that decide which answer is given."""
    given = request.answer is not None
    return {
        # vLLM generates at least one token, even where only the prompt's logprobs are wanted.
        "max_tokens": 1 if given else request.question.max_new_tokens,
        "prompt_logprobs": 0 if given else None,
        "temperature": request.temperature,
        "seed": request.seed if request.temperature > 0 else None,
        "allowed_token_ids": answer_tokens,
        "stop_token_ids": [end],
        "logprobs": 0,  # of the chosen token alone
        "detokenize": False,
    }


def completion(request: Request, output: Any) -> Completion | SampleRefused:
    """vLLM's output for a request as a completion, with one logprob a token."""
    made = output.outputs[0]
    if made.finish_reason not in ("stop", "length"):
        return SampleRefused(f"vLLM gave a request up: {made.finish_reason}")
    if request.answer is None:
        tokens, places, finish = tuple(made.token_ids), made.logprobs, made.finish_reason
    else:
        tokens, finish = request.answer, "stop"
        places = output.prompt_logprobs[-len(tokens) :]
    logprobs = (place[token].logprob for place, token in zip(places, tokens, strict=True))
    return Completion(request, tokens, tuple(logprobs), finish)
