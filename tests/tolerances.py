"""How far from a reference each quantity may be. One table; raising an entry needs a reason beside it.

"Noise" is what the original program itself differs by between float32 and float64, largest over the recorded runs.
"""

TOLERANCE = {
    # ALIGN, float32, largest absolute difference
    "image_embeds": 1e-5,  # noise 1.1e-6
    "text_embeds": 1e-5,  # noise 1.1e-6
    "logits_per_image": 1e-4,  # noise 8.8e-6
    "image_features / rms": 2e-4,  # noise 3.3e-5 of their root mean square
    "text_features": 1e-4,  # noise 7.3e-6
    "align inter": 1e-3,  # noise 7.2e-5
    "align loss": 1e-4,  # of a mean of logits
    "ghost features": 1e-4,  # noise 8.8e-6
    "ghost statistics": 1e-6,  # noise 9e-8
    # ALIGN, float64
    "align float64, relative": 3e-6,  # the original rounds 1/127.5 and the root of 2 to float32
    "align float64, same constants": 1e-9,  # with these two rounded constants only float64's own rounding is left
    # Preprocessing
    "resized pixels, of 255": 1e-2,  # noise 1.5e-3
    "reduced decoding, mean of 255": 0.9,  # 0.7 measured on photographs side by side; 1 is what is promised
    # ViT, float32, largest absolute difference
    "vit logits": 1e-4,  # noise 7.9e-6
    "vit pre_logits": 1e-4,  # noise 7.9e-6
    "vit inter": 5e-4,  # noise 4.3e-5
    "vit loss, relative": 1e-5,  # the original's are float32 sums over up to 21,841 classes of logits with that noise
    "vit positions": 1e-6,  # float32 rounding of values up to 0.07
    # ViT, float64
    "vit float64": 2e-9,  # what an independent float64 implementation reaches
    # Same weights in transformers' class
    "transformers": 1e-5,  # float32; the same operations in the same order
    "published probabilities": 1e-3,  # given with four digits, and by another version of the image processing
    # Inference, small models, float32
    "batching": 1e-5,  # the same input in another batch or with more padding: other kernels, another order of sums
    "scores": 1e-5,  # probabilities from the same weights by transformers' pipelines
    # Training
    "tiled loss float64": 1e-10,  # the same sums in another order; what is promised. Measured: 1e-14
    "tiled loss float32, relative": 1e-5,  # of the largest element; as promised
    "step norms": 2e-3,  # relative; noise of gradient norms 5e-4
    "lamb loss, first": 1e-4,  # noise 1.6e-5
    "lamb loss, later": 2e-3,  # noise 2e-4
    "lamb step norms": 5e-3,  # relative; noise 1.3e-3
    "lamb steps": 2e-6,  # for each step of 1e-3, single elements; noise 6e-8 in the first, unknown in the second
    "schedule, relative": 1e-6,  # the original computes in float32
    "vit step loss, relative": 5e-4,  # float32 sums, after steps that differ by float32 noise
    "vit steps": {"adamw": 2e-5, "sgd_ema": 1e-6},  # AdamW's step is close to a sign function where gradients are tiny
    "chunks float64": 1e-9,  # other order of sums, behind five blocks; measured 1e-13
    "runs float32": 2e-5,  # weights after a few steps of 0.05 with gradients of length 1: other orders of sums
    "lamb step float64": 1e-8,  # parameters after a step in three frameworks; what is promised
    "gradients float64": 1e-8,  # of one framework against another; what is promised. Measured on small models: 1e-12
}
