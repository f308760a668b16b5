"""medserve turns a medical image into a checked, reproducible report, on your own machine."""

__version__ = "0.1.0"
