"""The vision transformer of EAT and SSLAM, written for inference.

A spectrogram of 10.24 s is cut into patches of 16 frames x 16 mel bands, which stay in order of
time, all 8 bands of 160 ms together, and go with a leading CLS token through post-norm blocks:

    (1024 frames, 128 mel) -> 64 steps x 8 bands = 512 patches -> patches + positions
    -> [CLS, patches] -> norm -> blocks -> 513 tokens, of which CLS is dropped

    block:  x = norm(x + attention(x));  x = norm(x + mlp(x))

Sources: SSLAM (openreview.net/pdf?id=odU59TxdiB); its code (github.com/ta012/SSLAM: `images.py`
and `modules.py` in Pre-Training/SSLAM_Stage2/models, layer_norm_first=False); EAT (arXiv
2401.03497), whose port to Hugging Face gives the released files their names.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from paltrain.encoders.sslam import BANDS, PATCH, STEPS

MLP_RATIO = 4
NORM_EPS = 1e-6
INIT_STD = 0.02


class SpectrogramViT(nn.Module):
    """See the module. width: of a token, a multiple of 4 and of n_heads; depth: of the blocks."""

    positions: torch.Tensor

    def __init__(self, *, width: int, depth: int, n_heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(width))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(depth))

    def forward(self, spectrograms: torch.Tensor) -> torch.Tensor:
        """(B, 1024, 128) -> (B, 512, width), time-major: token = step * 8 + band."""
        tokens = self.patches(spectrograms[:, None]).flatten(2).transpose(1, 2) + self.positions
        x: torch.Tensor = self.norm(torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1))
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]

    def randomise(self, seed: int) -> None:
        """The same weights for the same seed: matrices N(0, 0.02), biases 0, norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(self.named_parameters()):
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)
            else:
                nn.init.constant_(parameter, float(name.endswith("weight")))


class Block(nn.Module):
    """Attention and MLP, each added to its input and then normalised."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm_attention = nn.LayerNorm(width, eps=NORM_EPS)
        self.up = nn.Linear(width, MLP_RATIO * width)
        self.down = nn.Linear(MLP_RATIO * width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, tokens, width) -> the same."""
        heads = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2)
        x = self.norm_attention(x + self.attended(mixed))
        output: torch.Tensor = self.norm_mlp(x + self.down(gelu(self.up(x))))
        return output


def sincos_positions(width: int) -> torch.Tensor:
    """(1, 512, width) of fixed positions, as masked autoencoders have them: the first half tells
    the band, the second the step, each by sines and then cosines of `width / 4` rates.

    The released files hold the same for up to 768 steps; there the file's count.
    """
    rates = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    step, band = torch.meshgrid(torch.arange(STEPS), torch.arange(BANDS), indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in (band, step)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], dim=1)[
        None
    ].float()


def released_names(depth: int) -> dict[str, str]:
    """Our names of weights -> those in a released model.safetensors."""
    names = {"cls": "extra_tokens", "positions": "fixed_positional_encoder.positions"}
    layers = {"patches": "local_encoder.proj", "norm": "pre_norm"}
    of_block = {
        "norm_attention": "norm1",
        "qkv": "attn.qkv",
        "attended": "attn.proj",
        "norm_mlp": "norm2",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    }
    for i in range(depth):
        layers |= {f"blocks.{i}.{own}": f"blocks.{i}.{other}" for own, other in of_block.items()}
    for own, other in layers.items():
        names |= {f"{own}.{kind}": f"{other}.{kind}" for kind in ("weight", "bias")}
    return {own: f"model.{other}" for own, other in names.items()}
