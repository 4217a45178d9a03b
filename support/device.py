"""Devices and precision, torch.compile, memory."""
import contextlib
import resource
import sys
from pathlib import Path

import torch

from support.errors import InputError


def resolve_device(name):
    """"cpu", "cuda" or "mps"; "auto" is the fastest that is there. Raises InputError for one that is not."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise InputError(f"--device {name}: torch finds no such device here; use --device cpu")
    return name


def autocast(device, precision):
    """A context in which matrix products run in bf16, or in fp32; weights, softmax and losses stay in fp32 either way."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def supports_bf16(device):
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device == "cpu":
        supported = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check() for check in supported if check)
    return False


def compiler_works(device):
    """Whether torch.compile can be used on this device: it needs a C++ compiler or Triton. If not, says so in one line."""
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"without torch.compile, which fails here ({reason[0]}): the same result, more slowly", file=sys.stderr)
        return False
    return True


def peak_memory():
    """Of this process so far, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss begins with what the process that started this one held
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2 ** 20
    return peak_memory_of(resource.RUSAGE_SELF)


def peak_memory_of(whom):
    """Of resource.RUSAGE_SELF, or of the largest of RUSAGE_CHILDREN, in GiB."""
    peak = resource.getrusage(whom).ru_maxrss  # kilobytes; on macOS bytes
    return peak / (2 ** 30 if sys.platform == "darwin" else 2 ** 20)
