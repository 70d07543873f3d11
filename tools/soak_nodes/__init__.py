"""What goes wrong in the middle of a prompt, as nodes: for `make soak`, never shipped."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from pathlib import Path

import comfy.patcher_extension
import folder_paths
import torch
from server import PromptServer

FULL_AT = 1000  # bytes a file may have while the disk is "full"


class Spoil:
    """A LoRA file is deleted or cut off after the prompt was accepted, and before its loader runs."""

    CATEGORY = "soak"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "spoil"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "file": ("STRING", {}), "how": (["deleted", "truncated"], {})}}

    def spoil(self, model, file, how):
        path = Path(folder_paths.get_full_path_or_raise("loras", file))
        if how == "deleted":
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2)
        return (model,)


class OutOfMemory:
    """A layer raises for lack of memory at the n-th model call."""

    CATEGORY = "soak"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "arm"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "layer": ("STRING", {}), "call": ("INT", {})}}

    def arm(self, model, layer, call):
        model, calls = model.clone(), [0]

        def fail(*_):
            raise torch.OutOfMemoryError("soak: no memory left in this layer")

        def wrapper(executor, *args, **kwargs):
            calls[0] += 1
            if calls[0] < call:
                return executor(*args, **kwargs)
            handle = executor.class_obj.diffusion_model.get_submodule(layer).register_forward_pre_hook(fail)
            try:
                return executor(*args, **kwargs)
            finally:
                handle.remove()

        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        model.add_wrapper_with_key(kind, "soak", wrapper)
        return (model,)


class Counts(ctypes.Structure):
    """glibc's ``struct mallinfo2``, bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def allocated():
    """MB that are allocated and not freed, whatever the allocator keeps besides; None where it does not tell.

    With PYTHONMALLOC=malloc that is all memory of Python's objects and of torch's tensors.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = Counts
        libc.malloc_trim(0)  # what the process is left with is then what it uses
        counts = libc.mallinfo2()
    except (AttributeError, TypeError, OSError):
        return None
    return (counts.uordblks + counts.hblkhd) / 1e6


class Collect:
    """Garbage is collected: after an error, core's frames hold models and latents in circles until Python does so."""

    CATEGORY = "soak"
    RETURN_TYPES = ()
    FUNCTION = "collect"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def collect(self, latent):
        gc.collect()
        return {"ui": {"allocated": [allocated()]}}


class FullDisk:
    """Until the prompt is over no file can grow: writes fail in the kernel, as they do on a full disk."""

    CATEGORY = "soak"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "fill"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def fill(self, latent):
        import resource  # POSIX only

        queue = PromptServer.instance.prompt_queue
        running = set(queue.currently_running)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The log is a file too: for as long it goes into a pipe.
        reading, writing = os.pipe()
        kept = {stream: os.dup(stream) for stream in (1, 2)}
        for stream in kept:
            os.dup2(writing, stream)
        os.close(writing)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_AT, before[1]))

        def free():
            while running & set(queue.currently_running):
                time.sleep(0.005)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            for stream, copy in kept.items():
                os.dup2(copy, stream)
                os.close(copy)
            with os.fdopen(reading, "rb") as pipe:
                os.write(1, pipe.read())

        threading.Thread(target=free, daemon=True).start()
        return (latent,)


NODE_CLASS_MAPPINGS = {
    "SoakSpoil": Spoil,
    "SoakOutOfMemory": OutOfMemory,
    "SoakCollect": Collect,
    "SoakFullDisk": FullDisk,
}
