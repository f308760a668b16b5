"""One command makes the demo model from nothing: `python -m tools.demo_model all`."""

import argparse
from pathlib import Path

from tools.demo_model import card, evaluate, examples, export, pool, train

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("draw", "train", "export", "evaluate")


def main() -> None:
    """Run one step, or all of them in order."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_model", description=__doc__)
    parser.add_argument("step", choices=[*STEPS, "all"])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "demo_model", help="folder for pictures and checkpoints"
    )
    parser.add_argument(
        "--target", type=Path, default=ROOT / "src" / "medserve" / "demo", help="folder of the shipped files"
    )
    parser.add_argument("--count", type=int, default=200, help="drawings of each kind in the evaluation")
    given = parser.parse_args()
    wanted = STEPS if given.step == "all" else (given.step,)
    if "draw" in wanted:
        pool.draw_all(given.work)
    if "train" in wanted:
        train.train(given.work, train.Plan())
    if "export" in wanted:
        export.export(given.work, given.target)
        examples.write(given.target)
    if "evaluate" in wanted:
        evaluate.evaluate(given.target, given.count)
        card.write(given.target, given.work)


if __name__ == "__main__":
    main()
