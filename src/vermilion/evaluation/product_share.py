"""What share of PyTorch's time goes into matrix products, from a profiled answer."""

from __future__ import annotations

from collections.abc import Sequence

from torch.profiler import ProfilerActivity, profile

from vermilion.engine.llm import LLM
from vermilion.types import Decoding, Sampling

_PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::addmm_",
    "aten::bmm",
    "aten::linear",
    "mkldnn::_linear_pointwise",
)


def product_share(llm: LLM, prompt: Sequence[int], decoding: Decoding) -> float:
    """Matrix products' share of the CPU time of the operators in decode steps."""
    ids = list(prompt)
    list(llm.stream(ids, Sampling(max_tokens=2), decoding))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        list(llm.stream(ids, Sampling(max_tokens=16), decoding))
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if event.key in _PRODUCTS)
    return products / total if total else 0.0
