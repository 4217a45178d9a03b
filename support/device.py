"""Devices and their precision, torch.compile, and memory."""
import contextlib
import re
import resource
import sys
from pathlib import Path

import torch

from support.errors import InputError


def resolve_device(name):
    """"cpu", "cuda" or "mps"; "auto" is the fastest that exists. Raises InputError for a missing
    one."""
    exists = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
              "cpu": True}
    if name == "auto":
        return next(device for device in exists if exists[device])
    if not exists[name]:
        raise InputError(f"--device {name}: torch finds no such device here; use --device cpu")
    return name


def autocast(device, precision):
    """A context in which matrix products run in "bf16" or "fp32".

    Weights, softmax and losses stay in fp32 either way."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def supports_bf16(device):
    """Whether the hardware multiplies in bf16."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        checks = [getattr(torch.cpu, name, None) for name in checks]  # not in every torch
        return any(check() for check in checks if check)
    return False


def wait_for_gpu():
    """Wait until the GPU, if one is in use, has done its work: only then may a clock be read."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    if torch.backends.mps.is_available():
        torch.mps.synchronize()


def compiler_works(device):
    """Whether torch.compile works here: it needs a C++ compiler or Triton. Says so if not."""
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"torch.compile fails here ({reason[0]}); running without it: the same result, more "
              "slowly", file=sys.stderr)
        return False
    return True


def peak_memory():
    """The peak of this process so far, in GiB."""
    status = Path("/proc/self/status")
    # On Linux ru_maxrss starts with the parent's peak. Some sandboxes' /proc lacks this line.
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if peak:
        return int(peak[1]) / 2 ** 20
    return peak_memory_of(resource.RUSAGE_SELF)


def peak_memory_of(whom):
    """The peak of resource.RUSAGE_SELF, or of the largest of RUSAGE_CHILDREN, in GiB."""
    peak = resource.getrusage(whom).ru_maxrss  # kilobytes; on macOS bytes
    return peak / (2 ** 30 if sys.platform == "darwin" else 2 ** 20)
