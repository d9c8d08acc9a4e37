"""Bind ``benchmarks`` to this checkout; it is not installed."""

import importlib
import sys
import types
from pathlib import Path
from unittest.mock import patch

from snooze.scheduling import packing_jit

package = types.ModuleType("benchmarks")
package.__path__ = [str(Path(__file__).parents[3] / "benchmarks")]
sys.modules.setdefault("benchmarks", package)

# The kernels run uncompiled in tests: compiling takes longer than all the tests.
with patch.object(packing_jit, "_COMPILER", None):
    importlib.import_module("benchmarks._planetlab_kernels")
