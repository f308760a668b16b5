"""A build is shown no pictures where its certificate says that it reads them wrongly, and says so of itself."""

from dataclasses import replace

from medserve import certificates
from medserve.engines import Capabilities
from medserve.settings import Settings
from medserve.threads import in_thread


async def certified(able: Capabilities, settings: Settings) -> tuple[Capabilities, str]:
    """What a build with a vision part can do by its certificate, and why it takes no pictures; "" where it does."""
    parity = await in_thread(certificates.parity, settings.home, dict(able.facts))
    judged = replace(able, facts=tuple(sorted((*able.facts, parity.fact))))
    return replace(judged, vision=None, image_tokens=0) if parity.refusal else judged, parity.refusal
