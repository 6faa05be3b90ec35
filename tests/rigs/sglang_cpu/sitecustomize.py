"""Lets SGLang start on a machine without a GPU: packages that it imports and never uses there import as stand-ins.

Python imports this module by itself when the folder is on PYTHONPATH. Nothing of SGLang is changed, and nothing of it
that answers a request is replaced: the server, the scheduler and the model run as they are.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# GPU kernels, codecs of pictures and sound, formats of quantised weights.
ABSENT = frozenset(
    {"torchvision", "triton", "torchaudio", "compressed_tensors", "gguf", "soundfile", "cuda", "sgl_kernel"}
)
# Libraries that look whether a package is there must still find it absent.
_PROBES = ("transformers/utils/import_utils.py", "torch/utils/_triton.py")


class _StandInMeta(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"

    def __getitem__(cls, _item: Any) -> type:
        return cls


class _StandInClass:
    def __init_subclass__(cls, **_options: Any) -> None:
        super().__init_subclass__()

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass


class StandIn(ModuleType):
    """A module of which every attribute exists: capitalised ones are classes, others are modules, which can be called.

    Called with one function, as a decorator is, it gives that function back.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__file__ = __file__
        self.__version__ = "3.7.1"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if name[:1].isupper():
            value = _StandInMeta(name, (_StandInClass,), {"__module__": self.__name__})
        else:
            value = importlib.import_module(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **options: Any) -> Any:
        if len(args) == 1 and callable(args[0]) and not options:
            return args[0]
        return lambda function=None, *_args, **_options: function

    def __contains__(self, _item: Any) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __bool__(self) -> bool:
        return False

    def __getitem__(self, _item: Any) -> StandIn:
        return self

    def __or__(self, _other: Any) -> type:
        return object

    __ror__ = __or__


class StandInFinder(MetaPathFinder, Loader):
    """Finds stand-ins for what is absent, after everything that is installed."""

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        """A spec for an absent module, unless a library only asks whether it is there."""
        if fullname.partition(".")[0] not in ABSENT or _is_probed():
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A stand-in."""
        module = StandIn(spec.name)
        if spec.name == "triton":
            _settle_that_there_is_no_triton()
            module.cdiv = lambda a, b: -(a // -b)
            module.next_power_of_2 = lambda n: 1 << (n - 1).bit_length() if n > 0 else 1
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def _is_probed() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith(_PROBES):
            return True
        frame = frame.f_back if "importlib" in file else None
    return False


def _settle_that_there_is_no_triton() -> None:
    """Have torch look now, since it keeps what it finds."""
    from torch.utils import _triton

    assert _triton.has_triton_package() is False


sys.meta_path.append(StandInFinder())
