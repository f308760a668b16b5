"""No share without its interval: between which bounds the true one lies in 95 of 100 cases."""

from math import sqrt

Z = 1.959963984540054
"""The standard normal distribution's 97.5th percentile."""


def wilson(count: float, n: int) -> tuple[float, float]:
    """The score interval of `count` in `n`, which stays within 0 and 1 (Wilson, JASA 22:209, 1927); n is at least 1."""
    share = count / n
    middle = share + Z * Z / (2 * n)
    spread = Z * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low, high = (middle - spread) / (1 + Z * Z / n), (middle + spread) / (1 + Z * Z / n)
    return (0.0 if count == 0 else max(0.0, low)), (1.0 if count == n else min(1.0, high))
