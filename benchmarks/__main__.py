"""``python -m benchmarks NAME [options]``: run one benchmark.

Each module of this folder that has a ``main(arguments: list[str]) -> int`` is a benchmark; its name
on the command line is the module's, with dashes for underscores.
"""

import importlib
import pkgutil
import sys
from pathlib import Path


def names() -> list[str]:
    """The benchmarks in this folder."""
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if not module.name.startswith("_")
    )


def main(arguments: list[str]) -> int:
    """Run the benchmark named first."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print("usage: python -m benchmarks NAME [options]\nnames:", ", ".join(names()))
        return 0 if arguments else 2
    name = arguments[0]
    if name not in names():
        print(f"no benchmark named {name!r}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    result: int = module.main(arguments[1:])
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
