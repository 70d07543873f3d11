import folder_paths, torch
from lora_conductor.host.encoders import load_metric_encoder
from .test_guidance_sampling import *
def test_probe(parts):
    w=dict(parts)
    with torch.inference_mode():
        w["clip_encoder"]=load_metric_encoder(folder_paths.get_full_path_or_raise("clip_vision","emoji_clip.safetensors"))
        w["dino_encoder"]=load_metric_encoder(folder_paths.get_full_path_or_raise("clip_vision","emoji_dino.safetensors"))
    for label,p in (("tiny",parts),("world",w)):
        for eta in (0.0,1e-6,0.01,0.03,0.1):
            mk=(lambda: plan(p,guidance_strength=eta)) if eta else (lambda: None)
            t,s=run(p["model"],mk(),batch=2); o=[run(p["model"],mk(),batch=1,batch_index=[i]) for i in range(2)]
            print(label,eta,[f"{relative(t[i:i+1],o[i][0]):.1e}" for i in range(2)], [[f"{abs(e['displacement_rms'][0]-f['displacement_rms'][0]):.1e}" for e,f in zip(s["evaluations"],o[0][1]["evaluations"])]] if eta else "")
