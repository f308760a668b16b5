"""Gemma 3 on vLLM: started and watched as a process of our own, or met at the address where somebody else runs it.

Our own vLLM (`own.py`) listens on a socket in a private folder: most of its routes ask for no key, so nobody else may
reach it. What of vLLM's own may be set besides is in `arguments.py`. Somebody else's is asked what it is and no more
(`elsewhere.py`). Both batch by themselves, keep what they have read in whole blocks, and are asked in OpenAI's dialect
with vLLM's extensions (`dialect.py`); `labels.py` is how labels are scored.

Some builds mask pictures as they mask text, which Gemma 3 does not, and say nothing of it. A certificate
(`medserve verify`) tells; where it says that the build failed, pictures are refused.
"""

from medserve.engines import Outlook, Weights
from medserve.engines.vllm import elsewhere, own
from medserve.engines.vllm.dialect import Vllm
from medserve.settings import ModelSpec, Settings

WEIGHTS = Weights.FOLDER


async def start(model: ModelSpec, settings: Settings) -> Vllm:
    """The model on a vLLM of our own, or on the one at its `url`; raises ModelFailed, which says why and what to do."""
    if model.url is not None:
        return await elsewhere.start(model, settings)
    return await own.start(model, settings)


async def examine(model: ModelSpec, settings: Settings) -> Outlook:
    """What is known of either before it is started or asked anything; see `Examine`."""
    if model.url is not None:
        return await elsewhere.examine(model, settings)
    return await own.examine(model, settings)
