"""A pretended CUDA device on a machine that has none: it computes on the CPU, and refuses what CUDA would refuse.

    with Pretended() as gpu:                 # torch.device("cuda") exists, torch.cuda.is_available() is True
        x = torch.randn(3).to("cuda")        # x.device.type == "cuda", x.is_cuda, x.numpy() raises
        x + torch.randn(3)                   # raises DeviceMixed, as on a GPU
    gpu.report()                             # what crossed between host and device, and where (file:line)

Refused are operators over tensors of both devices (a CPU scalar tensor beside pointwise operators and CPU indices into
CUDA tensors are allowed, as on a GPU), ``numpy()`` and ``tolist``-free access to device memory, a generator of another
device than the output, CUDA indices into CPU tensors, dtypes and operators that CUDA lacks (a short list).
Counted, with the line of the watched packages that caused it, are blocking reads (``item``, ``bool``, ``float``,
``nonzero``, boolean masks, ``unique`` …), copies to the device (pinned or pageable, blocking or not) and back, bytes.
Out of reach are kernels that are missing or wrong on CUDA, memory, races, streams, NCCL, Triton (switch the product's
fused kernel off, or stand something in for it), and CUDA's own numerics.

torch's own FakeTensorMode has no values; a wrapper subclass with values inside keeps data-dependent code running.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import re
import sys
import types
import weakref
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)


class _Event:
    """What has happened by the time that it is asked for."""

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream:
    """Everything is done at once, in the order of the calls."""

    def wait_event(self, *_: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def record_event(self, *_: Any) -> _Event:
        return EVENT


EVENT, STREAM = _Event(), _Stream()


class DeviceMixed(RuntimeError):
    """What CUDA would have refused."""


_active: list[Pretended] = []


@ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)
def _no_context(*_: Any) -> bool:
    return False


_table: list[Any] = []  # lives as long as the process: libtorch holds its address


def _backward_without_a_driver() -> None:
    """Let autograd's engine run over tensors of the device cuda in a CUDA build of torch without a driver.

    torch's own no-op guard (made for fake tensors) has one device; the engine then asks CUDA's hooks for
    its context, which raises where there is no driver (FakeTensorMode's own backward fails there too, torch 2.14). The
    hooks get a copy of their table of virtual functions in which that question is answered with no; its place is read
    off the header that torch brings. A CPU build of torch never asks.
    """
    torch._C._ensureCUDADeviceGuardSet()
    if _table or not torch.backends.cuda.is_built() or torch.cuda.is_available():
        return
    root = Path(torch.__file__).parent
    header = (root / "include" / "ATen" / "detail" / "AcceleratorHooksInterface.h").read_text()
    names = re.findall(r"^  virtual [^(]*?(~?\w+)\(", header, re.MULTILINE)
    assert names[0].startswith("~"), "the destructor, which has two entries, comes first"
    slot, entries, pointer = names.index("hasPrimaryContext") + 1, 160, ctypes.sizeof(ctypes.c_void_p)
    hooks = ctypes.CDLL(str(root / "lib" / "libtorch_cpu.so"))["_ZN2at6detail12getCUDAHooksEv"]
    hooks.restype, hooks.argtypes = ctypes.c_void_p, []
    held = ctypes.c_void_p.from_address(hooks())
    table = (ctypes.c_void_p * (entries + 2))()
    ctypes.memmove(table, held.value - 2 * pointer, ctypes.sizeof(table))
    table[2 + slot] = ctypes.cast(_no_context, ctypes.c_void_p).value
    _table.append(table)
    atexit.register(setattr, held, "value", held.value)  # a callback is gone before libtorch is
    held.value = ctypes.addressof(table) + 2 * pointer


class OnDevice(torch.Tensor):
    """A tensor whose device is ``cuda:0`` and whose values lie on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        assert type(inner) is not OnDevice
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CUDA,
            requires_grad=False,
        )
        made.inner = inner
        return made

    def __init__(self, inner: torch.Tensor) -> None: ...

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        mode = _active[-1] if _active else Pretended(quiet=True)
        return mode.run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: Any) -> Any:  # saved as what map_location="cpu" would bring back
        inner = self.inner.detach()
        return inner.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        if _active:
            _active[-1].noted("read tolist", 0)
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        with torch.no_grad():
            made = self.detach().clone()
        made.requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            made._is_param = True
        memo[id(self)] = made
        return made


# Blocking reads of the host: the stream is waited for.
READS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique_consecutive",
    aten.unique_dim.default: "unique_dim",
    aten.bincount.default: "bincount",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "is_nonzero",
    aten._linalg_svd.default: "svd",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten.index_put.out if hasattr(aten.index_put, "out") else None,
}
COPIES = {aten.copy_.default, aten._to_copy.default, aten.copy.default}
# A CPU scalar tensor may stand beside CUDA tensors here although the operator has no pointwise tag.
SCALAR_FRIENDLY = {
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.where.self,
    aten.fill_.Tensor,
    aten.fill.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten.lerp.Scalar,
}
# What CUDA has no kernel for (integer matrix products).
NO_INTEGERS = {
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.addmv.default,
    aten.mv.default,
    aten.dot.default,
}


class Pretended(TorchDispatchMode):
    """While inside, ``cuda`` is there."""

    def __init__(self, watched: tuple[str, ...] = ("/jestbench/", "/policies/"), quiet: bool = False) -> None:
        super().__init__()
        self.watched, self.quiet = watched, quiet
        self.counts: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.ops = 0
        self.pinned: weakref.WeakSet[Any] = weakref.WeakSet()
        self.attention: Counter[tuple[str, str]] = Counter()
        self._stack: contextlib.ExitStack | None = None

    # What is counted

    def where(self) -> str:
        """The innermost line of the watched packages."""
        frame = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            part = next((part for part in self.watched if part in name), None)
            if part is not None and name != __file__:
                return f"{part.strip('/')}/{name.rsplit(part, 1)[1]}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        return "?"

    def noted(self, what: str, size: int) -> None:
        if not self.quiet:
            key = (what, self.where())
            self.counts[key] += 1
            self.bytes[key] += size

    def clear(self) -> None:
        self.counts.clear()
        self.bytes.clear()
        self.attention.clear()
        self.ops = 0

    def report(self, title: str = "") -> str:
        lines = [f"== {title}: {self.ops} operators on the device"] if title else []
        for (what, where), count in sorted(self.counts.items(), key=lambda item: (item[0][0], -item[1])):
            size = self.bytes[what, where]
            lines.append(f"{count:6d} x {what:34s} {size:>12,d} B  {where}")
        return "\n".join(lines)

    def totals(self) -> dict[str, int]:
        found: dict[str, int] = defaultdict(int)
        for (what, _), count in self.counts.items():
            found[what] += count
        return dict(found)

    # Operators

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        flat, _ = tree_flatten((args, kwargs))
        on = [value for value in flat if isinstance(value, OnDevice)]
        off = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)]
        asked = kwargs.get("device")
        asked = torch.device(asked) if asked is not None else None
        if not on and (asked is None or asked.type != "cuda") and not kwargs.get("pin_memory"):
            return func(*args, **kwargs)  # nothing of ours
        if kwargs.get("pin_memory"):
            if on or (asked is not None and asked.type != "cpu"):
                raise DeviceMixed(f"{func}: only dense CPU tensors can be pinned")
            out = func(*args, **{**kwargs, "pin_memory": False})
            self.pinned.add(out.untyped_storage())
            return out
        self.ops += bool(on)
        if func in COPIES:
            return self._copied(func, args, kwargs, asked)
        if not on and asked is not None and asked.type == "cuda":  # made there
            generator = kwargs.get("generator")
            if generator is not None and generator.device.type != "cuda":
                raise DeviceMixed(f"{func}: expected a 'cuda' device type for generator, found 'cpu' ({self.where()})")
        if on:
            self._checked(func, args, kwargs, on, off, asked)
        if func in READS:
            self.noted(f"read {READS[func]}", 0)
        if func in INDEXED:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.noted("read boolean mask", 0)
                if index is not None and not isinstance(index, OnDevice) and on:
                    self.noted("to device: CPU index, blocking", index.numel() * index.element_size())
        inner = tree_map(lambda value: value.inner if isinstance(value, OnDevice) else value, (args, kwargs))
        inner_args, inner_kwargs = inner
        to_cpu = False
        if asked is not None:
            inner_kwargs = dict(inner_kwargs)
            if asked.type == "cuda":
                inner_kwargs["device"] = torch.device("cpu")
            else:
                to_cpu = True
        elif not on:
            to_cpu = True
        out = func(*inner_args, **inner_kwargs)
        if to_cpu:
            return out
        wrapped = tree_map(lambda v: OnDevice(v) if isinstance(v, torch.Tensor) and v.device.type == "cpu" else v, out)
        if not on:
            return wrapped
        return return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _copied(self, func, args, kwargs, asked):
        if func is aten.copy_.default or func is aten.copy.default:
            into, source = args[0], args[1]
            self._crossed(source, into, bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking")))
            inner = [value.inner if isinstance(value, OnDevice) else value for value in args]
            out = func(*inner, **kwargs)
            if func is aten.copy_.default:
                return into
            return OnDevice(out) if isinstance(into, OnDevice) else out
        source = args[0]
        was_on = isinstance(source, OnDevice)
        inner_kwargs = dict(kwargs)
        target_on = was_on if asked is None else asked.type == "cuda"
        if asked is not None and asked.type == "cuda":
            inner_kwargs["device"] = torch.device("cpu")
        inner_kwargs.pop("non_blocking", None)
        inner_kwargs.pop("pin_memory", None)
        out = func(source.inner if was_on else source, **inner_kwargs)
        if out.device.type == "meta":
            return out
        result = OnDevice(out) if target_on else out
        if was_on != target_on:
            self._crossed(source, result, bool(kwargs.get("non_blocking")))
        return result

    def _crossed(self, source, into, non_blocking: bool) -> None:
        was_on, now_on = isinstance(source, OnDevice), isinstance(into, OnDevice)
        if was_on == now_on:
            return
        size = source.numel() * source.element_size()
        if now_on:
            pinned = source.untyped_storage() in self.pinned
            kind = "pinned" if pinned else "pageable"
            kind += ", async" if pinned and non_blocking else ", blocking"
            self.noted(f"to device: {kind}", size)
        else:
            self.noted("to host: " + ("unblocked (no values yet!)" if non_blocking else "blocking"), size)

    def _checked(self, func, args, kwargs, on, off, asked) -> None:
        generator = kwargs.get("generator")
        if generator is None:
            generator = next((value for value in args if isinstance(value, torch.Generator)), None)
        if generator is not None and generator.device.type != "cuda":
            raise DeviceMixed(f"{func}: expected a 'cuda' device type for generator but found 'cpu' ({self.where()})")
        if func in NO_INTEGERS and any(not value.is_floating_point() for value in on):
            raise DeviceMixed(f"{func}: not implemented for integers on CUDA ({self.where()})")
        if func in INDEXED:
            if not isinstance(args[0], OnDevice):
                raise DeviceMixed(f"{func}: indices should be on the CPU like the indexed tensor ({self.where()})")
            values = args[2] if len(args) > 2 else None
            if isinstance(values, torch.Tensor) and not isinstance(values, OnDevice) and values.dim():
                raise DeviceMixed(f"{func}: values on the CPU for a tensor on cuda ({self.where()})")
            return
        bad = [value for value in off if value.dim() > 0 and value.device.type == "cpu"]
        scalars = [value for value in off if value.dim() == 0 and value.device.type == "cpu"]
        if bad:
            shapes = ", ".join(f"{v.device.type}{list(v.shape)}" for v in [*on, *off])
            raise DeviceMixed(f"{func}: expected all tensors on one device, got {shapes} ({self.where()})")
        if scalars and torch.Tag.pointwise not in func.tags and func not in SCALAR_FRIENDLY:
            raise DeviceMixed(f"{func}: a CPU scalar tensor beside cuda tensors ({self.where()})")
        if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor) and not isinstance(args[0], OnDevice):
            raise DeviceMixed(f"{func}: writes cuda values into a CPU tensor ({self.where()})")

    # The world around

    def _noting_attention(self, attend):
        """Count which kernels CUDA could choose; the formula itself runs as torch's plain one."""

        def noting(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **more):
            if isinstance(q, OnDevice) and not torch.jit.is_tracing():
                half = torch.is_autocast_enabled("cuda") or q.dtype in (torch.float16, torch.bfloat16)
                mask = "no mask" if attn_mask is None else f"{str(attn_mask.dtype)[6:]} mask"
                flash = "flash" if half and attn_mask is None else "no flash"
                self.attention[f"{mask}, {'causal, ' if is_causal else ''}{flash}", self.where()] += 1
            return attend(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **more)

        return noting

    def _pinning(self, empty):
        """Modes hold in the thread that enters them; memory is pinned in others too."""

        def pinning(*args, pin_memory=False, **more):
            made = empty(*args, **more)
            if pin_memory:
                if made.device.type != "cpu":
                    raise DeviceMixed("only dense CPU tensors can be pinned")
                self.pinned.add(made.untyped_storage())
            return made

        return pinning

    def _pinned_copy(self, tensor):
        """``Tensor.pin_memory``, which asks the driver before any operator could be caught."""
        if tensor.device.type != "cpu":
            raise DeviceMixed("only dense CPU tensors can be pinned")
        made = tensor.clone()
        self.pinned.add(made.untyped_storage())
        return made

    def _is_pinned(self, tensor):
        return type(tensor) is not OnDevice and tensor.untyped_storage() in self.pinned

    def __enter__(self):
        stack = self._stack = contextlib.ExitStack()
        _backward_without_a_driver()
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        # A parameter's data cannot become a wrapper in place: ``Module.to`` makes new parameters, before any optimizer.
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        for name, stand_in in {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda *_: None,
            "get_device_name": lambda *_: "Pretended",
            "get_device_capability": lambda *_: (9, 0),
            "manual_seed": lambda *_: None,
            "manual_seed_all": lambda *_: None,
            "is_bf16_supported": lambda *_, **__: True,
            "synchronize": lambda *_: None,
            "set_sync_debug_mode": lambda *_: None,
            "empty_cache": lambda: None,
            "memory_allocated": lambda *_: 0,
            "get_device_properties": lambda *_: types.SimpleNamespace(total_memory=80 << 30),
            "max_memory_allocated": lambda *_: 0,
            "reset_peak_memory_stats": lambda *_: None,
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "set_rng_state": lambda *_, **__: None,
            "device": lambda *_: contextlib.nullcontext(),
            "Stream": lambda *_, **__: STREAM,
            "Event": lambda *_, **__: EVENT,
            "current_stream": lambda *_: STREAM,
            "stream": lambda *_: contextlib.nullcontext(),
            "device_of": lambda *_: contextlib.nullcontext(),
        }.items():
            stack.callback(setattr, torch.cuda, name, getattr(torch.cuda, name))
            setattr(torch.cuda, name, stand_in)
        functional = torch.nn.functional
        for holder, name, stand_in in (
            (
                functional,
                "scaled_dot_product_attention",
                self._noting_attention(functional.scaled_dot_product_attention),
            ),
            (torch, "empty", self._pinning(torch.empty)),
            (torch.Tensor, "pin_memory", lambda tensor, *_: self._pinned_copy(tensor)),
            (torch.Tensor, "is_pinned", lambda tensor, *_: self._is_pinned(tensor)),
            (torch.Tensor, "record_stream", lambda *_: None),
        ):
            stack.callback(setattr, holder, name, getattr(holder, name))
            setattr(holder, name, stand_in)
        _active.append(self)
        stack.callback(_active.remove, self)
        return super().__enter__()

    def __exit__(self, *error):
        done = super().__exit__(*error)
        assert self._stack is not None
        self._stack.close()
        return done
