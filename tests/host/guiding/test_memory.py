"""Memory: estimates against what autograd keeps, the announcement to core, and running out of it."""

import comfy.latent_formats
import comfy.model_management
import comfy.sampler_helpers
import folder_paths
import numpy
import pytest
import torch
from comfy.taesd.taesd import TAESD

from lora_conductor.host.core import ConductorError
from lora_conductor.host.guiding import GuidanceOptions
from lora_conductor.host.vision import DecoderLadder, gradients_enabled
from lora_conductor.host.vision import decoders as guidance_decoders
from lora_conductor.host.vision import vae as decode
from lora_conductor.host.vision.previews import PreviewDecoder, RgbDecoder, preview_decoder
from lora_conductor.host.vision.vae import LatentDecoder

from ..vision.test_gradients import directional_error, kl_vae
from .guided import fingerprint, plan, run

OutOfMemory = comfy.model_management.OOM_EXCEPTION


def kept_bytes(function) -> int:
    """Bytes of the distinct activations that autograd keeps while a function's graph lives."""
    storages = {}

    def pack(tensor):
        if tensor.grad_fn is not None:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = function()
    assert graph.requires_grad
    return sum(storages.values())


@pytest.fixture
def taesd_file(models_dir):
    folder = models_dir / "vae_approx"
    folder.mkdir(exist_ok=True)
    path = folder / "taef1_decoder.pth"
    with torch.inference_mode(False):
        torch.manual_seed(0)
        decoder = TAESD(latent_channels=16).taesd_decoder
        for parameter in decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        torch.save(decoder.state_dict(), path)
    folder_paths.filename_list_cache.clear()
    yield path
    path.unlink()
    folder_paths.filename_list_cache.clear()


def test_estimates_cover_what_is_kept_and_checkpointing_saves_most(taesd_file, record_property):
    shape = (1, 4, 32, 32)
    with torch.inference_mode():
        vae = kl_vae()
    comfy.model_management.load_models_gpu([vae.patcher])
    kept = {}
    gradients = {}
    for name, settings in {"plain": {}, "checkpointed": {"checkpoint_blocks": True}}.items():
        decoder = LatentDecoder(vae, comfy.latent_formats.SD15(), **settings)
        with gradients_enabled():
            latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
            kept[name] = kept_bytes(lambda decoder=decoder, latents=latents: decoder(latents).sum())
            gradients[name] = torch.autograd.grad(decoder(latents).square().sum(), latents)[0]
        estimate = decoder.memory(shape)
        record_property(
            f"KL decoder, {name}: kept / core's estimate of the forward pass",
            kept[name] / estimate * (decode.CHECKPOINTED_MEMORY if settings else decode.GRADIENT_MEMORY),
        )
        assert estimate >= kept[name]
        decoder.close()
    torch.testing.assert_close(gradients["plain"], gradients["checkpointed"], rtol=1e-4, atol=1e-6)
    assert kept["checkpointed"] < 0.5 * kept["plain"]

    preview = preview_decoder(str(taesd_file), comfy.latent_formats.Flux())
    with gradients_enabled():
        latents = torch.randn(1, 16, 32, 32).requires_grad_(True)
        used = kept_bytes(lambda: preview(latents).sum())
    record_property("TAESD decoder: bytes kept for each latent pixel", used / 32**2)
    assert used <= preview.memory((1, 16, 32, 32)) < 2 * used


def test_core_is_told_before_sampling(parts, monkeypatch):
    asked = []
    original = comfy.model_management.load_models_gpu

    def noting(models, memory_required=0, *args, **kwargs):
        asked.append((memory_required, kwargs.get("minimum_memory_required")))
        return original(models, memory_required, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noting)
    run(parts["model"])
    plain = max(asked, key=lambda entry: entry[0])
    asked.clear()
    guidance = plan(parts)
    run(parts["model"], guidance)
    guided = max(asked, key=lambda entry: entry[0])
    decoder = LatentDecoder(parts["vae"], parts["model"].model.latent_format)
    needed = decoder.memory((1, 16, 8, 8))
    assert guided[0] >= plain[0] + needed
    assert guided[1] >= plain[1] + needed


def failing_above(limit: int, monkeypatch) -> None:
    """Decoders run out of memory above so many latent pixels, half of it when their activations are kept."""
    decode_samples, preview = LatentDecoder.decode_samples, PreviewDecoder.__call__

    def vae(self, samples):
        pixels = samples.shape[-1] * samples.shape[-2] * self._scale**2
        if pixels * (1 if self._decode.checkpoint_blocks else 2) > limit:
            raise OutOfMemory("no room, for a test")
        return decode_samples(self, samples)

    def small(self, latents):
        if latents.shape[-1] * latents.shape[-2] > 16 * limit:
            raise OutOfMemory("no room, for a test")
        return preview(self, latents)

    monkeypatch.setattr(LatentDecoder, "decode_samples", vae)
    monkeypatch.setattr(PreviewDecoder, "__call__", small)


@pytest.mark.parametrize(
    ("limit", "preview", "decoder", "fallbacks"),
    [
        (128, False, "vae", 0),
        (64, False, "vae, checkpointed", 1),
        (16, False, "vae, at 0.5 of the resolution", 2),
        (8, True, "preview decoder", 3),
        (8, False, "latent to RGB factors", 3),
        (1, True, "latent to RGB factors", 4),
    ],
)
def test_out_of_memory_steps_down_and_says_so(
    parts,
    monkeypatch,
    caplog,
    request,
    models_dir,
    limit,
    preview,
    decoder,
    fallbacks,
):
    if preview:
        request.getfixturevalue("taesd_file")
    expected, _ = run(parts["model"])
    before = fingerprint(parts["model"])
    failing_above(limit, monkeypatch)
    guided, scores = run(parts["model"], plan(parts, options=GuidanceOptions(decoder="vae", final_scores=True)))
    assert scores["decoder"] == decoder
    assert len(scores["fallbacks"]) == fallbacks
    assert all("out of memory" in message and message in caplog.text for message in scores["fallbacks"])
    assert scores["skipped"] == 0 and scores["final"] is not None
    assert not torch.equal(guided, expected)
    monkeypatch.undo()
    after = fingerprint(parts["model"])
    assert before[1:] == after[1:] and all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert torch.equal(run(parts["model"])[0], expected)


def test_without_any_memory_crops_go_then_guidance_and_the_picture_is_the_unguided_one(parts, monkeypatch):
    def never(self, *args):
        raise OutOfMemory("no room, for a test")

    expected, _ = run(parts["model"])
    for kind in (LatentDecoder, PreviewDecoder, RgbDecoder):
        monkeypatch.setattr(kind, "__call__", never)
    got, scores = run(parts["model"], plan(parts, options=GuidanceOptions(crops=2, final_scores=True)))
    assert torch.equal(got, expected)
    assert "2 crops" in scores["fallbacks"][-2] and "not guided" in scores["fallbacks"][-1]
    assert scores["final"] is None and len(scores["evaluations"]) == 1


def test_the_papers_mode_steps_down_too(parts, monkeypatch):
    failing_above(64, monkeypatch)
    _, scores = run(parts["model"], plan(parts, options=GuidanceOptions(mode="paper")))
    assert scores["decoder"] == "vae, checkpointed" and scores["skipped"] == 0


def test_other_errors_are_not_taken_for_lack_of_memory(parts, monkeypatch):
    def broken(self, samples):
        raise ValueError("broken, for a test")

    monkeypatch.setattr(LatentDecoder, "decode_samples", broken)
    with pytest.raises(ValueError, match="broken, for a test"):
        run(parts["model"], plan(parts))


def test_preview_and_rgb_decoders_have_gradients(taesd_file, record_property):
    flux = comfy.latent_formats.Flux()
    for decoder in (preview_decoder(str(taesd_file), flux), RgbDecoder(flux)):
        with gradients_enabled():
            latents = 0.1 * torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
            image = decoder(latents)
            assert image.shape[:2] == (1, 3) and image.min() >= 0.0 and image.max() <= 1.0
            inside = ((image > 0.02) & (image < 0.98)).detach()
            error = directional_error(lambda z, d=decoder, i=inside: (d(z).double() * i).mean(), latents, 2e-4)
        record_property(f"{decoder.name}: relative error of the gradient", error)
        assert error < 0.02


def test_rgb_factors_are_those_of_cores_previews():
    import latent_preview

    for latent_format in (comfy.latent_formats.SD15(), comfy.latent_formats.Flux()):
        latents = torch.randn(1, latent_format.latent_channels, 6, 6, generator=torch.Generator().manual_seed(0))
        core = latent_preview.Latent2RGBPreviewer(
            latent_format.latent_rgb_factors, getattr(latent_format, "latent_rgb_factors_bias", None)
        )
        expected = torch.from_numpy(numpy.array(core.decode_latent_to_preview(latents))).float() / 255
        torch.testing.assert_close(RgbDecoder(latent_format)(latents)[0].movedim(0, -1), expected, atol=0.006, rtol=0)


def test_which_decoder_is_first(parts, taesd_file):
    latent_format = parts["model"].model.latent_format
    names = {
        choice: DecoderLadder(choice, parts["vae"], latent_format).current.name for choice in guidance_decoders.DECODERS
    }
    assert names == {
        "auto": "preview decoder",
        "vae": "vae",
        "preview": "preview decoder",
        "latent RGB": "latent to RGB factors",
    }
    _, scores = run(parts["model"], plan(parts, vae=None, options=GuidanceOptions(final_scores=True)))
    assert scores["decoder"] == "preview decoder" and scores["final"] is not None


def test_a_missing_or_wrong_preview_decoder_is_named(parts, taesd_file):
    torch.save({"nonsense": torch.zeros(1)}, taesd_file)
    with pytest.raises(ConductorError, match=r"decoder: taef1_decoder\.pth.*not a TAESD decoder"):
        run(parts["model"], plan(parts, options=GuidanceOptions(decoder="preview")))
    taesd_file.unlink()
    folder_paths.filename_list_cache.clear()
    with pytest.raises(ConductorError, match="decoder: there is no file 'taef1_decoder'"):
        run(parts["model"], plan(parts, options=GuidanceOptions(decoder="preview")))
    taesd_file.touch()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_vae_that_half_precision_breaks_is_decoded_in_single(parts, trusted, monkeypatch):
    vae, seen = parts["vae"], []
    monkeypatch.setattr(vae, "vae_dtype", torch.float16)
    monkeypatch.setattr(vae, "working_dtypes", [torch.float16] if trusted else [torch.bfloat16, torch.float32])

    def noting(latents):
        seen.append(latents.dtype)
        return torch.zeros(1, 3, 64, 64, dtype=latents.dtype)

    monkeypatch.setattr(vae.first_stage_model, "decode", noting)
    decoder = LatentDecoder(vae, parts["model"].model.latent_format)
    with gradients_enabled():
        assert decoder(torch.zeros(1, 16, 8, 8)).dtype == torch.float32
    assert seen == [torch.float16 if trusted else torch.float32]
