"""CLIP (Radford et al., 2021, arXiv:2103.00020): image tower, text tower, tokenizer, preprocessing, weights.

    model = load("ViT-B/16")                                            # or a path, see `load`
    image = preprocess(model.visual.input_resolution)(Image.open("frame.jpg"))
    features = model.encode_image(image[None])                          # (1, embed_dim), not normalised
    features = model.encode_text(tokenize(["a photo of a cat"]))        # (1, embed_dim), not normalised

Vision transformers only. Parameters carry OpenAI's names. The file works alone with bpe_merges.txt.gz, CLIP's merge
table (MIT licence), beside it. Shapes: n images or texts, L tokens of a text, P patches of an image, width of a tower.
"""

import gzip
import hashlib
import html
import json
import math
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftfy
import regex
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchvision.transforms import Compose


class QuickGELU(nn.Module):
    """The approximation of GELU that OpenAI trained with."""

    SLOPE = 1.702

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.SLOPE * x).sigmoid_()  # in place: one temporary less


def pick(x: Tensor, idx: Tensor) -> Tensor:
    """Position idx[i] of sequence i: (n, L, width), (n,) -> (n, 1, width)."""
    return x[torch.arange(len(x), device=x.device), idx].unsqueeze(1)


class Attention(nn.MultiheadAttention):
    """Self-attention with the parameters of `nn.MultiheadAttention` and PyTorch's fused kernel, batch first."""

    def __init__(self, *, width: int, heads: int, causal: bool):
        super().__init__(width, heads)
        self.causal = causal

    def forward(self, x: Tensor, idx: Tensor | None = None) -> Tensor:
        """(n, L, width) -> (n, L, width); with `idx` (n,), what position idx[i] of sequence i gets, (n, 1, width)."""
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        x = x.to(weight.dtype)  # of a tower that `quicken` cast; else it is
        q = F.linear(x if idx is None else pick(x, idx), weight[:width], bias[:width])  # (n, L or 1, width)
        k, v = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)  # each (n, L, width)
        # each (n, heads, L, head width)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None  # or where the one query of a causal sequence may look, (n, 1, 1, L)
        if self.causal and idx is not None:
            mask = torch.arange(x.shape[1], device=x.device) <= idx[:, None, None, None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal and idx is None)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class ResidualAttentionBlock(nn.Module):
    """Attention, then an MLP of four times the width, each behind a LayerNorm and added to its input."""

    def __init__(self, *, width: int, heads: int, causal: bool, quick_gelu: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width=width, heads=heads, causal=causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, x: Tensor, idx: Tensor | None = None) -> Tensor:
        """(n, L, width) -> (n, L, width); with `idx` (n,), position idx[i] of sequence i, (n, 1, width)."""
        x = (x if idx is None else pick(x, idx)) + self.attn(self.ln_1(x), idx)
        return x + self.mlp(self.ln_2(x).to(self.attn.out_proj.weight.dtype))


class Transformer(nn.Module):
    """Pre-LayerNorm residual blocks."""

    def __init__(self, *, width: int, layers: int, heads: int, causal: bool, quick_gelu: bool):
        super().__init__()
        self.resblocks = nn.Sequential(
            *(
                ResidualAttentionBlock(width=width, heads=heads, causal=causal, quick_gelu=quick_gelu)
                for _ in range(layers)
            )
        )
        for block in self.resblocks:  # as OpenAI's text tower: the 2 * layers summands of the stream are scaled down
            nn.init.normal_(block.get_parameter("attn.in_proj_weight"), std=width**-0.5)
            nn.init.normal_(block.get_parameter("attn.out_proj.weight"), std=(2 * layers * width) ** -0.5)
            nn.init.normal_(block.get_parameter("mlp.c_fc.weight"), std=(2 * width) ** -0.5)
            nn.init.normal_(block.get_parameter("mlp.c_proj.weight"), std=(2 * layers * width) ** -0.5)

    def forward(self, x: Tensor, idx: Tensor | None = None) -> Tensor:
        """(n, L, width) -> (n, L, width); with `idx` (n,), position idx[i] of sequence i, (n, width).

        What other positions need keys and values for only, the last block does not compute.
        """
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x)
        return last(x) if idx is None else last(x, idx).squeeze(1)


class VisionTransformer(nn.Module):
    """The image tower: patches, a class token in front of them, and what the class token becomes."""

    def __init__(
        self,
        *,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        quick_gelu: bool,
    ):
        super().__init__()
        self.input_resolution = input_resolution
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        num_tokens = 1 + (input_resolution // patch_size) ** 2
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(num_tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width=width, layers=layers, heads=heads, causal=False, quick_gelu=quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, output_dim))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, input_resolution, input_resolution) -> (n, output_dim)."""
        x = self.conv1(images.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (n, P, width)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)  # (n, 1 + P, width)
        class_token = torch.zeros(len(x), dtype=torch.long, device=x.device)
        x = self.transformer(self.ln_pre(x + self.positional_embedding), class_token)  # (n, width)
        return self.ln_post(x) @ self.proj  # (n, output_dim)


@torch.no_grad()
def quicken(tower: VisionTransformer, dtype: torch.dtype = torch.float32) -> None:
    """Makes an image tower fast for inference alone, in place: it says the same, but its weights have another hash.

    QuickGELU is silu(1.702 x) / 1.702: both factors go into the weights around it. Matrix products and attention are
    computed in `dtype`, their weights cast here once; LayerNorms, the residual stream and the features stay float32.
    """
    for block in tower.transformer.resblocks:
        mlp: Any = block.get_submodule("mlp")
        if isinstance(mlp.gelu, QuickGELU):
            for factor, parameter in ((1, mlp.c_fc.weight), (1, mlp.c_fc.bias), (-1, mlp.c_proj.weight)):
                parameter.mul_(QuickGELU.SLOPE**factor)
            mlp.gelu = nn.SiLU(inplace=True)
    for module in tower.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, Attention)):
            module.to(dtype)


class CLIP(nn.Module):
    """Image and text tower with a common embedding.

    Args:
        embed_dim: Size of the common embedding.
        image_resolution, vision_patch_size: Side of the square images and of their patches, pixels.
        vision_layers, vision_width: Of the image tower; without `vision_heads`, one attention head per 64 of width.
        context_length: Most tokens of a text, the start and end tokens included.
        vocab_size: Number of tokens; the last one is the end token.
        transformer_width, transformer_heads, transformer_layers: Of the text tower.
        quick_gelu: QuickGELU, which OpenAI's weights need, or else GELU.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int,
        vision_width: int,
        vision_patch_size: int,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
        quick_gelu: bool = True,
        vision_heads: int | None = None,
    ):
        super().__init__()
        self.visual = VisionTransformer(
            input_resolution=image_resolution,
            patch_size=vision_patch_size,
            width=vision_width,
            layers=vision_layers,
            heads=vision_heads or vision_width // 64,
            output_dim=embed_dim,
            quick_gelu=quick_gelu,
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, transformer_width))
        self.transformer = Transformer(
            width=transformer_width,
            layers=transformer_layers,
            heads=transformer_heads,
            causal=True,
            quick_gelu=quick_gelu,
        )
        self.ln_final = nn.LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(transformer_width**-0.5 * torch.randn(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # Sec. 2.5
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, images: Tensor) -> Tensor:
        """Features (n, embed_dim), not normalised, of images (n, 3, input_resolution, input_resolution).

        Raises:
            ValueError: If the images have another size.
        """
        side = self.visual.input_resolution
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images must be (n, 3, {side}, {side}) for this CLIP, got {tuple(images.shape)}")
        if images.device.type != "cpu":
            return self.visual(images)
        # so that the MLP's 4 * width fit into the cache: 16 MiB
        few = max(1, 2**20 // self.visual.positional_embedding.numel())
        return torch.cat([self.visual(part) for part in images.split(few)])

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features (n, embed_dim), not normalised, of `tokenize`d texts (n, context_length)."""
        return self.encode_text_embeddings(self.token_embedding(tokens), tokens.argmax(dim=-1))  # EOT is the largest id

    def encode_text_embeddings(self, embeddings: Tensor, eot_idx: Tensor) -> Tensor:
        """Features (n, embed_dim), not normalised, of texts as token embeddings, say with learned context vectors.

        Attention is causal, so what stands behind the last end token of the batch cannot matter and is not computed.

        Args:
            embeddings: Token embeddings without positions, (n, L, width).
            eot_idx: Position of each text's end token, (n,), in [0, L).
        Raises:
            ValueError: If an end token lies outside the embeddings or the context.
        """
        L, limit = int(eot_idx.max()) + 1, min(embeddings.shape[1], len(self.positional_embedding))
        if int(eot_idx.min()) < 0 or L > limit:
            raise ValueError(f"eot_idx must be in [0, {limit}), the tokens of a text, got {eot_idx.tolist()}")
        x = self.transformer(embeddings[:, :L] + self.positional_embedding[:L], eot_idx.to(embeddings.device))
        return self.ln_final(x) @ self.text_projection

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled similarities: logits_per_image (images, texts) and logits_per_text (texts, images)."""
        image_features = F.normalize(self.encode_image(images), dim=-1)
        text_features = F.normalize(self.encode_text(tokens), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.T
        return logits_per_image, logits_per_image.T


_SPECIAL_IDS = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
_WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


@lru_cache(maxsize=1)
def merge_table() -> tuple[dict[int, int], dict[tuple[int, int], int]]:
    """Token id of each byte, and token id of each pair of ids that merges; the lowest merges first.

    Ids 0 to 255 are the bytes, printable ones first, 256 to 511 the same at the end of a word, then follow the merges.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]  # the file's alphabet
    ids = {symbol: i for i, symbol in enumerate(symbols + [symbol + "</w>" for symbol in symbols])}
    merges = {}
    path = Path(__file__).with_name("bpe_merges.txt.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file, _named_errors(path):
        for line in file:
            first, second = line.split()
            merges[ids[first], ids[second]] = ids[first + second] = len(ids)
    return {byte: i for i, byte in enumerate(printable + others)}, merges


@lru_cache(maxsize=2**16)
def _word_ids(word: str) -> tuple[int, ...]:
    """Byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909) of one word."""
    if word in _SPECIAL_IDS:
        return (_SPECIAL_IDS[word],)
    byte_ids, merges = merge_table()
    ids = [byte_ids[byte] for byte in word.encode("utf-8")]
    ids[-1] += 256
    while pairs := [pair for pair in zip(ids, ids[1:]) if pair in merges]:
        best, i = min(pairs, key=merges.__getitem__), 0
        while i < len(ids):
            if tuple(ids[i : i + 2]) == best:
                ids[i : i + 2] = [merges[best]]
            i += 1
    return tuple(ids)


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Token ids as OpenAI's CLIP makes them.

    Args:
        texts: One text or n texts.
        context_length: Length of a row; 77 in all of OpenAI's models.
        truncate: Cut a text that is too long, keeping the start and the end token, instead of raising.
    Returns:
        Ids, (n, context_length), int32: start token, text, end token, zeros.
    Raises:
        RuntimeError: If a text is too long and `truncate` is off.
    """
    texts = [texts] if isinstance(texts, str) else texts
    rows = torch.zeros(len(texts), context_length, dtype=torch.int32)
    for row, text in zip(rows, texts):
        # OpenAI also strips the text and collapses blanks, which changes no id
        clean = html.unescape(html.unescape(ftfy.fix_text(text))).lower()
        ids = [i for word in ("<|startoftext|>", *_WORDS.findall(clean), "<|endoftext|>") for i in _word_ids(word)]
        if len(ids) > context_length and not truncate:
            raise RuntimeError(f"Input {text} is too long for context length {context_length}")
        ids = ids[:-1][: context_length - 1] + ids[-1:]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def preprocess(n_px: int) -> "Compose":
    """OpenAI's transform of a PIL image to a float32 tensor (3, n_px, n_px): shorter side resized, centre cropped."""
    from torchvision import transforms as T

    return T.Compose(
        [
            T.Resize(n_px, interpolation=T.InterpolationMode.BICUBIC, antialias=True),
            T.CenterCrop(n_px),
            methodcaller("convert", "RGB"),
            T.ToTensor(),
            T.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )


_BASE_URL = "https://openaipublic.azureedge.net/clip/models/"
_URLS = {  # published by OpenAI; the folder of a file is its SHA-256
    "ViT-B/32": f"{_BASE_URL}40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "ViT-B/16": f"{_BASE_URL}5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ViT-L/14": f"{_BASE_URL}b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    "ViT-L/14@336px": f"{_BASE_URL}3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
}


class WeightsError(ValueError):
    """Weights that cannot be fetched, found, read or used; one line that says which and why."""


def available_models() -> list[str]:
    """Names that `load` fetches."""
    return list(_URLS)


def file_name(name: str) -> str:
    """Of a published model's file."""
    return _URLS[name].split("/")[-1]


def cached_file(name: str) -> Path:
    """Where `load` keeps a model of that name, whether it is there or not."""
    folder = os.path.expanduser(os.environ.get("CLIP_CACHE") or "~/.cache/clip")
    if folder.startswith("~"):
        raise WeightsError(
            f"{name}: no home folder to keep it in, set CLIP_CACHE to a folder or give a file of weights"
        )
    return Path(folder, file_name(name))


def _fetch(name: str) -> Path:
    """The cached file of a model, checked by its SHA-256; downloaded if it is missing or damaged."""
    path, sha256 = cached_file(name), _URLS[name].split("/")[-2]
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return path
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_URLS[name], str(part), hash_prefix=sha256, progress=sys.stderr.isatty())
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:  # no network, no space, a wrong hash: the way out is the same
        raise WeightsError(
            f"cannot fetch {name} ({error}): put the file {_URLS[name]} at {path}, or set CLIP_CACHE"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turns whatever a file makes its parser raise into one line: a hostile file can cause any exception."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, WeightsError) else f"cannot be read as CLIP weights: {type(error).__name__}: "
        raise WeightsError(f"{path}: {kind}{(str(error).splitlines() or [''])[0]}") from error


_MOST_UNPACKED = 10  # times the size of a file; weights hardly compress, so more is an attack on the memory
_DTYPES = {  # of safetensors, those that weights may have; ids, masks and what is newer are none
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_WRAPPED = re.compile(r"^((_orig_mod|module|model|clip_model|clip)\.)+")  # by compile, DataParallel, Lightning, others


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file: length of the header (8 bytes, little-endian), JSON header, data."""
    with open(path, "rb") as file:
        header_length, left, state = int.from_bytes(file.read(8), "little"), path.stat().st_size - 8, {}
        if header_length > min(left, 10**8):  # 10**8: the format's own limit
            raise WeightsError(f"the header claims {header_length} bytes, {left} follow")
        header, left = json.loads(file.read(header_length)), left - header_length
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):  # no overlaps, no gaps
            dtype, shape, (begin, end) = _DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
            size, position = (
                math.prod(shape) * dtype.itemsize if dtype else end - begin,
                file.tell() - 8 - header_length,
            )
            if begin != position or end != begin + size or not position <= end <= left:
                raise WeightsError(f"{name} claims shape {shape} at bytes {begin} to {end}, not {position} to {left}")
            if dtype and size:
                state[name] = torch.frombuffer(bytearray(file.read(size)), dtype=dtype).reshape(shape)
            else:
                file.seek(size, os.SEEK_CUR)
    return state


class _Inert:
    """Stands for an object of a TorchScript archive's own classes: attributes without code."""


ARCHIVE_GLOBALS = {  # all that the pickle of an archive may name, besides its own classes
    "torch.HalfStorage": torch.float16,
    "torch.FloatStorage": torch.float32,
    "torch.LongStorage": torch.int64,
    "torch._utils._rebuild_tensor_v2": lambda data, offset, size, stride, *_: data.as_strided(size, stride, offset),
    "torch.jit._pickle.build_intlist": list,
    "collections.OrderedDict": OrderedDict,
}


class TensorUnpickler(pickle._Unpickler):  # the one in C lets a file choose how much memory its memo takes
    """Reads data.pkl of a torch archive: tensors, and inert objects for an archive's own classes."""

    def __init__(self, archive: zipfile.ZipFile):
        assert archive.filename is not None, "an archive in memory has no size to compare with"
        size = os.stat(archive.filename).st_size
        if sum(member.file_size for member in archive.infolist()) > _MOST_UNPACKED * size:
            raise WeightsError(f"unpacks to more than {_MOST_UNPACKED} times its size")
        self.archive, self.root, self.storages = archive, archive.namelist()[0].split("/")[0], {}
        super().__init__(archive.open(f"{self.root}/data.pkl"))

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type("_Inert", (_Inert,), {})  # a new class each time, so that no file can change it for another
        if f"{module}.{name}" not in ARCHIVE_GLOBALS:
            raise WeightsError(f"its pickle names {module}.{name}, which is refused")
        return ARCHIVE_GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: tuple) -> Tensor:
        _, dtype, key, _, num_values = pid
        if key not in self.storages:
            member = self.archive.getinfo(f"{self.root}/data/{key}")
            if member.file_size != num_values * dtype.itemsize:
                raise WeightsError(f"storage {key} claims {num_values} values of {dtype}, has {member.file_size} bytes")
            self.storages[key] = torch.frombuffer(bytearray(self.archive.read(member)), dtype=dtype)
        return self.storages[key]


def _tensors_of(module: _Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors below a module with their attribute paths."""
    attributes = dict(vars(module))
    vars(module).clear()  # what is reached again counts once: cycles and floods of aliases end here
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Inert):
            yield from _tensors_of(value, f"{prefix}{name}.")


def _read_torch(path: Path) -> dict[str, Any]:
    """What `torch.save` or `torch.jit.save` wrote: tensors and plain values, nothing else."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            reader = TensorUnpickler(archive)
            if f"{reader.root}/constants.pkl" in archive.namelist():  # this is how torch tells the two apart
                return dict(_tensors_of(reader.load()))  # an archive looks at what it reads, torch.load does not
            if damaged := archive.testzip():
                raise WeightsError(f"is damaged at {damaged!a:.60}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError("no torch file, or one with objects that would need unpickling, which is refused") from error


_HUGGING_FACE_NAMES = {  # replaced in this order
    "vision_model.": "visual.",
    "text_model.": "",
    "embeddings.": "",
    "encoder.layers.": "transformer.resblocks.",
    "position_embedding.weight": "positional_embedding",
    "patch_embedding.": "conv1.",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
    ".layer_norm": ".ln_",
    ".self_attn.": ".attn.",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}


def _openai_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in OpenAI's layout: q, k, v in one matrix, projections (width, embed_dim)."""
    renamed = {}
    for name, tensor in state.items():
        tensor = tensor.T if name in ("visual_projection.weight", "text_projection.weight") else tensor
        for theirs, ours in _HUGGING_FACE_NAMES.items():
            name = name.replace(theirs, ours)
        if name.split(".")[-1] not in ("input_resolution", "context_length", "vocab_size", "attn_mask", "position_ids"):
            renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        qkv = [renamed.pop(name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
        renamed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(qkv)
    return renamed


def _read_config(path: Path) -> dict:
    with _named_errors(path):
        return json.loads(path.read_bytes()) if path.is_file() else {}


def _settings(path: Path, state: dict[str, Tensor], is_checkpoint: bool) -> dict:
    """Activation and heads by the rules that `load` states; for a key that a config leaves out, its maker's default."""
    if "visual_projection.weight" in state and (config := _read_config(path.with_name("config.json"))):
        text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
        activations = {tower.get("hidden_act", "quick_gelu") for tower in (text, vision)}
        if activations not in ({"quick_gelu"}, {"gelu"}):
            raise WeightsError(f"hidden_act must be quick_gelu or gelu, in both towers, got {sorted(activations)}")
        return {
            "quick_gelu": activations == {"quick_gelu"},
            "vision_heads": vision.get("num_attention_heads", 12),
            "transformer_heads": text.get("num_attention_heads", 8),
        }
    if "input_resolution" in state:
        return {"quick_gelu": True}
    if config := _read_config(path.with_name("open_clip_config.json")):
        config = config.get("model_cfg", config)
        vision_heads = len(state["visual.class_embedding"]) // config["vision_cfg"].get("head_width", 64)
        return {
            "quick_gelu": config.get("quick_gelu", False),
            "vision_heads": vision_heads,
            "transformer_heads": config["text_cfg"].get("heads", 8),
        }
    return {"quick_gelu": "quickgelu" in path.name or not (is_checkpoint or path.name.startswith("open_clip"))}


def _sizes_of(state: dict[str, Tensor]) -> dict[str, int]:
    """Arguments of `CLIP` read off a state dict with OpenAI's names; one attention head per 64 of width."""
    if missing := {"visual.conv1.weight", "visual.positional_embedding", "text_projection"} - state.keys():
        raise WeightsError(f"no CLIP with a vision transformer: lacks {', '.join(sorted(missing))}")
    vision_width, _, _, patch_size = state["visual.conv1.weight"].shape
    text_width, embed_dim = state["text_projection"].shape
    blocks = [name for name in state if name.endswith(".ln_1.weight")]
    vision_layers = sum(name.startswith("visual.") for name in blocks)
    return {
        "embed_dim": embed_dim,
        "vision_layers": vision_layers,
        "vision_width": vision_width,
        "vision_heads": 16 if vision_width == 1280 else vision_width // 64,  # ViT-H/14 alone has heads of 80
        "image_resolution": math.isqrt(len(state["visual.positional_embedding"]) - 1) * patch_size,
        "vision_patch_size": patch_size,
        "context_length": len(state["positional_embedding"]),
        "vocab_size": len(state["token_embedding.weight"]),
        "transformer_width": text_width,
        "transformer_heads": text_width // 64,
        "transformer_layers": len(blocks) - vision_layers,
    }


def build(state: dict[str, Tensor], settings: dict) -> CLIP:
    """A CLIP from a state dict with OpenAI's names; `settings` are arguments of `CLIP` that the sizes do not tell.

    Raises:
        WeightsError: If the tensors are not those of such a CLIP.
    """
    with torch.device("meta"):  # neither memory nor initialisation
        model = CLIP(**{**_sizes_of(state), **settings})
    expected = model.state_dict()
    state = {name: x for name, x in state.items() if name in expected or x.is_floating_point()}  # others: ids, masks
    for name in sorted(expected.keys() | state.keys()):
        found, wanted = (
            "nothing"
            if name not in names
            else tuple(names[name].shape)
            if names[name].is_floating_point()
            else names[name].dtype
            for names in (state, expected)
        )
        if found != wanted:
            raise WeightsError(f"{name}: expected {wanted}, found {found}")
    model.load_state_dict({name: tensor.float().contiguous() for name, tensor in state.items()}, assign=True)
    return model.eval()


def check_claims(state: dict[str, Tensor], path: Path) -> None:
    """Refuses tensors that are far larger than their file, as those whose values all are one."""
    if sum(tensor.nbytes for tensor in state.values()) > _MOST_UNPACKED * path.stat().st_size:  # stride 0
        raise WeightsError(f"its tensors claim more than {_MOST_UNPACKED} times its size")


def _find_file(path: Path) -> Path:
    names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    for file in (path, *(path / name for name in names)):
        if file.is_file():
            return file
    raise WeightsError(f"{path}: no file, no folder with {' or '.join(names)}, none of the models {', '.join(_URLS)}")


def load(name_or_path: str | Path, device: str | torch.device = "cpu", quick_gelu: bool | None = None) -> CLIP:
    """Reads CLIP weights; nothing that a file holds is executed.

    A name (`available_models`) is fetched once into the folder CLIP_CACHE (by default ~/.cache/clip). A path may be
    OpenAI's TorchScript archive, a state dict (.pt, .bin, .safetensors) with OpenAI's, open_clip's or Hugging Face's
    (CLIPModel) names, also behind the prefixes of a wrapper such as DataParallel, or a Hugging Face or open_clip
    folder. All sizes are read off the weights, heads and activation off config.json or open_clip_config.json beside
    them. Without one, and for OpenAI's own files (they hold a scalar input_resolution), heads are 64 wide and the
    activation is QuickGELU; but it is GELU, open_clip's default, for its training checkpoints and for file names that
    begin with open_clip, unless they contain "quickgelu".

    Args:
        name_or_path: Model name, weights file or folder.
        device: Where the model goes.
        quick_gelu: QuickGELU or GELU, whatever the rules above say.
    Returns:
        The model, float32, in eval mode.
    Raises:
        WeightsError: If the weights cannot be fetched, found, read or used.
    """
    path = _fetch(str(name_or_path)) if name_or_path in _URLS else _find_file(Path(name_or_path))
    with _named_errors(path):
        content: dict[str, Any] = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        found = {name: x for name, x in content.get("state_dict", content).items() if isinstance(x, Tensor)}
        state = {_WRAPPED.sub("", name).removeprefix("text."): x for name, x in found.items()}  # open_clip's towers
        if len(state) < len(found):
            raise WeightsError("holds several models, whose names differ in their prefixes alone")
        check_claims(state, path)
        chosen = {} if quick_gelu is None else {"quick_gelu": quick_gelu}
        model = build(_openai_names(state), _settings(path, state, "state_dict" in content) | chosen)
    return model.to(device)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over sorted names and float32 values of a state dict: the same for the same weights in any layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
