"""A process that says which GPUs torch sees, and ends: the gateway never imports torch.

Out comes one JSON line: `{"torch": version, "gpus": [name]}`.
"""

import json
import sys

import torch


def main() -> None:
    """Look and say."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(number) for number in range(there)]
    sys.stdout.write(json.dumps({"torch": torch.__version__, "gpus": names}) + "\n")


if __name__ == "__main__":
    main()
