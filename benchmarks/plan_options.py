"""What benchmarks ask for that work on the models of a plan file."""

import argparse
import pathlib

PLAN = pathlib.Path(__file__).parents[1] / "plans" / "amun_cifar10_random10.toml"


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all of them have; `workers` is a number or "auto"."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--plan", default=PLAN, type=pathlib.Path)
    options.add_argument("--scale", default=None, help="cpu, or nothing for the paper's own")
    options.add_argument("--root", default="data")
    options.add_argument("--store", default="runs")
    options.add_argument("--workers", default="auto", type=lambda text: text if text == "auto" else int(text))
    options.add_argument("--out", default="docs/results", type=pathlib.Path)
    return options
