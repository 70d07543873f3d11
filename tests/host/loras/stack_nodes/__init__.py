"""A node pack as others write them: one node makes a LORA_STACK, one applies it with ComfyUI's own loader."""

import json

import comfy.sd
import comfy.utils
import folder_paths


class MakeStack:
    CATEGORY = "tests"
    RETURN_TYPES = ("LORA_STACK",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"stack": ("STRING", {"default": "[]"})}}

    def make(self, stack):
        value = json.loads(stack)
        return ([tuple(entry) if isinstance(entry, list) else entry for entry in value] if value else value,)


class ApplyStack:
    CATEGORY = "tests"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "lora_stack": ("LORA_STACK",)}}

    def apply(self, model, lora_stack):
        for name, strength, clip_strength in lora_stack:
            tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name), safe_load=True)
            model, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, clip_strength)
        return (model,)


NODE_CLASS_MAPPINGS = {"MakeStack": MakeStack, "ApplyStack": ApplyStack}
