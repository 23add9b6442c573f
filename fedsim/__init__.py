"""fedsim: federated learning that survives malicious participants and keeps data private."""

from __future__ import annotations

import os as _os
from importlib import import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

# In a checkout or an app bundle that is not installed, strategies/, attacks/, datasets/ and experiments/ are siblings.
_root = _Path(__file__).resolve().parent.parent
if (_root / "strategies" / "__init__.py").is_file() and not (_root / "fedsim" / "strategies").exists():
    __path__.append(str(_root))

# Torch's threads spin for some 10 ms after each operation unless told otherwise before torch is imported: fedsim's own
# threads wait for their cores meanwhile, and on a busy machine everybody does.
_os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # half a millisecond of a core's own

# The last bits of a product by Intel's library depend on where its rows lie in memory, unless that is forbidden before
# its first product.
_os.environ.setdefault("MKL_CBWR", "AUTO")

if TYPE_CHECKING:
    from fedsim.callbacks import Callback as Callback
    from fedsim.callbacks import EarlyStopping as EarlyStopping
    from fedsim.check import Invalid as Invalid
    from fedsim.privacy import ExampleDP as ExampleDP
    from fedsim.privacy import MessageDP as MessageDP
    from fedsim.result import Result as Result
    from fedsim.result import load as load
    from fedsim.runner import run as run
    from fedsim.spec import Experiment as Experiment
    from fedsim.task import Task as Task
    from fedsim.version import __version__ as __version__

# Loaded on first use, so that `import fedsim` and `fedsim --help` cost nothing.
_home = {
    "Callback": "callbacks",
    "EarlyStopping": "callbacks",
    "Experiment": "spec",
    "ExampleDP": "privacy",
    "Invalid": "check",
    "MessageDP": "privacy",
    "Result": "result",
    "Task": "task",
    "__version__": "version",
    "load": "result",
    "run": "runner",
}
__all__ = [
    "Callback",
    "EarlyStopping",
    "ExampleDP",
    "Experiment",
    "Invalid",
    "MessageDP",
    "Result",
    "Task",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _home:
        return getattr(import_module(f"fedsim.{_home[name]}"), name)
    raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
