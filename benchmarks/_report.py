"""What every benchmark prints and writes beside its figures."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The machine the figures were taken on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain text table; numbers to the right, text to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    lines = ["  ".join(name.ljust(width) for name, width in zip(columns, widths, strict=True))]
    lines.append("  ".join("-" * width for width in widths))
    for row, values in zip(cells, rows, strict=True):
        lines.append(
            "  ".join(
                cell.rjust(width) if isinstance(value, int | float) else cell.ljust(width)
                for cell, width, value in zip(row, widths, values, strict=True)
            )
        )
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(output: str | None, result: Mapping[str, Any]) -> None:
    """Write ``result`` with the machine beside it as JSON to ``output``, if one is named."""
    if output is None:
        return
    document = {"machine": machine(), "command": sys.argv[1:], **result}
    Path(output).write_text(json.dumps(document, indent=1) + "\n")
