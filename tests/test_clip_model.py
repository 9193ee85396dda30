"""Tests of clip_model.py. Vectors of OpenAI's implementation lie in tests/reference/; whole files are read from
../shared.
"""

import ast
import hashlib
import importlib.util
import json
import os
import pickle
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import clip_model
from clip_model import (
    CLIP,
    Attention,
    QuickGELU,
    WeightsError,
    available_models,
    load,
    preprocess,
    tokenize,
    weights_hash,
)
from tests.places import ROOT, SHARED
from tests.tiny_clip import tiny_clip_state_dict

TESTDATA = ROOT / "tests" / "reference"
SHARED_CLIP = SHARED / "reference" / "clip_tiny"
CASES = json.loads((TESTDATA / "tokenizer" / "cases.json").read_text())
PICTURES = json.loads((TESTDATA / "preprocess" / "expected.json").read_text())
TINY = json.loads((TESTDATA / "clip_tiny" / "expected.json").read_text())["config"]
SMALL = dict(
    embed_dim=24,
    image_resolution=32,
    vision_layers=2,
    vision_width=128,
    vision_patch_size=16,
    context_length=9,
    vocab_size=50,
    transformer_width=64,
    transformer_heads=4,
    transformer_layers=3,
)
SCALARS = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}


@pytest.fixture(scope="module", autouse=True)
def one_thread():  # more do not help models this small
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_clip(**changes) -> CLIP:
    torch.manual_seed(0)
    return CLIP(**{**SMALL, **changes}).eval()


def write_safetensors(path: Path, state: dict, header_changes: dict | None = None, header_length: int | None = None):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    dtypes = {dtype: name for name, dtype in clip_model._DTYPES.items()}
    for name, tensor in state.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": dtypes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps({**header, **(header_changes or {})}).encode()
    path.write_bytes(struct.pack("<Q", len(text) if header_length is None else header_length) + text + data)


def hugging_face_state(state: dict) -> dict:
    """The tiny weights as CLIPModel names and shapes them, written out by hand."""
    out = {
        "logit_scale": state["logit_scale"],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    for kind in ("weight", "bias"):
        out[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        out[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        out[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        for ours, theirs in (("", "text_model"), ("visual.", "vision_model")):
            for i in range(2):
                a, b = f"{ours}transformer.resblocks.{i}", f"{theirs}.encoder.layers.{i}"
                q, k, v = state[f"{a}.attn.in_proj_{kind}"].chunk(3)
                out |= {
                    f"{b}.self_attn.q_proj.{kind}": q,
                    f"{b}.self_attn.k_proj.{kind}": k,
                    f"{b}.self_attn.v_proj.{kind}": v,
                    f"{b}.self_attn.out_proj.{kind}": state[f"{a}.attn.out_proj.{kind}"],
                    f"{b}.layer_norm1.{kind}": state[f"{a}.ln_1.{kind}"],
                    f"{b}.layer_norm2.{kind}": state[f"{a}.ln_2.{kind}"],
                    f"{b}.mlp.fc1.{kind}": state[f"{a}.mlp.c_fc.{kind}"],
                    f"{b}.mlp.fc2.{kind}": state[f"{a}.mlp.c_proj.{kind}"],
                }
    return out


def write_hugging_face_config(
    folder: Path, text_heads=1, vision_heads=1, text_act="quick_gelu", vision_act="quick_gelu"
):
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "clip",
                "text_config": {"num_attention_heads": text_heads, "hidden_act": text_act},
                "vision_config": {"num_attention_heads": vision_heads, "hidden_act": vision_act},
            }
        )
    )


def write_open_clip_config(folder: Path, **changes):
    config = {"embed_dim": 64, "vision_cfg": {"image_size": 32}, "text_cfg": {"heads": 1}, **changes}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


def write_torchscript(path: Path, state: dict):
    """A real TorchScript archive with the names, the scalars and the float16 weights of OpenAI's own files."""
    model = CLIP(**TINY)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    model = model.half().eval()
    for name, value in SCALARS.items():
        model.register_buffer(name, torch.tensor(value))
    example = torch.zeros(1, 3, 32, 32, dtype=torch.float16), tokenize("!")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(path))


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory) -> dict[str, Path]:
    """The tiny CLIP in every layout that `load` reads."""
    root, state = tmp_path_factory.mktemp("tiny"), tiny_clip_state_dict()
    folders = {name: root / name for name in ("openai", "torchscript", "hf", "hf_bin", "open_clip", "text_prefix")}
    for folder in folders.values():
        folder.mkdir()
    torch.save(state, folders["openai"] / "weights.pt")
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        folders["openai"] / "epoch_3-quickgelu.pt",
    )
    torch.save(state, folders["openai"] / "legacy.pt", _use_new_zipfile_serialization=False)
    write_torchscript(folders["torchscript"] / "model.pt", state)
    write_safetensors(folders["hf"] / "model.safetensors", hugging_face_state(state))
    torch.save(hugging_face_state(state), folders["hf_bin"] / "pytorch_model.bin")
    write_safetensors(
        folders["open_clip"] / "open_clip_model.safetensors", {name: tensor.float() for name, tensor in state.items()}
    )
    towers = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    torch.save(
        {f"text.{name}" if name.startswith(towers) else name: tensor for name, tensor in state.items()},
        folders["text_prefix"] / "open_clip_pytorch_model.bin",
    )
    for folder in (folders["hf"], folders["hf_bin"]):
        write_hugging_face_config(folder)
    for folder in (folders["open_clip"], folders["text_prefix"]):
        write_open_clip_config(folder, quick_gelu=True)
    return {
        "plain": folders["openai"] / "weights.pt",
        "legacy": folders["openai"] / "legacy.pt",
        "checkpoint": folders["openai"] / "epoch_3-quickgelu.pt",
        "torchscript": folders["torchscript"] / "model.pt",
        "hf": folders["hf"],
        "hf_file": folders["hf"] / "model.safetensors",
        "hf_bin": folders["hf_bin"],
        "open_clip": folders["open_clip"],
        "text_prefix": folders["text_prefix"],
    }


@pytest.fixture(scope="module")
def tiny(tiny_files) -> CLIP:
    return load(tiny_files["plain"])


def check_features(model: CLIP):
    """Against OpenAI's implementation, with the tolerances of the reference."""
    expected = np.load(TESTDATA / "clip_tiny" / "expected.npz", allow_pickle=False)
    images, tokens = torch.from_numpy(expected["images"]), torch.from_numpy(expected["tokens"])
    with torch.no_grad():
        found = {"encode_image": model.encode_image(images), "encode_text": model.encode_text(tokens)}
        found["logits_per_image"], logits_per_text = model(images, tokens)
    for name, tensor in found.items():
        tolerance = 5e-5 if name == "logits_per_image" else 2e-5
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=tolerance, err_msg=name)
    assert torch.equal(logits_per_text, found["logits_per_image"].T)


# ---------------------------------------------------------------- the towers


def test_parameters_have_openais_names_and_shapes():
    theirs = {name: tuple(tensor.shape) for name, tensor in tiny_clip_state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in CLIP(**TINY).state_dict().items()} == theirs


def test_fresh_weights_are_scaled_as_openais():
    state = CLIP(**{**SMALL, "vocab_size": 500, "transformer_width": 128, "embed_dim": 128}).state_dict()
    summand = (2 * 3 * 128) ** -0.5  # 3 layers of width 128, each adds twice
    expected = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "text_projection": 128**-0.5,
        "visual.proj": 128**-0.5,
        "visual.positional_embedding": 128**-0.5,
        "transformer.resblocks.1.attn.in_proj_weight": 128**-0.5,
        "transformer.resblocks.1.attn.out_proj.weight": summand,
        "transformer.resblocks.1.mlp.c_fc.weight": 256**-0.5,
        "transformer.resblocks.1.mlp.c_proj.weight": summand,
    }
    for name, std in expected.items():
        assert state[name].std() == pytest.approx(std, rel=0.1), name
        assert abs(state[name].mean()) < 0.1 * std, name
    assert state["logit_scale"].exp() == pytest.approx(1 / 0.07)
    assert state["transformer.resblocks.1.attn.in_proj_bias"].abs().max() == 0
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_a_slow_loop_over_heads(causal):
    attention, x = Attention(width=12, heads=3, causal=causal).double(), torch.randn(2, 5, 12).double()
    torch.nn.init.normal_(attention.in_proj_bias)
    q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8), slice(8, 12)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / 4**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., head])
    expected = torch.cat(heads, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias
    torch.testing.assert_close(attention(x), expected)


def test_activation_is_quick_gelu_or_exact_gelu():
    x = torch.linspace(-4, 4, 33)
    quick, exact = (small_clip(quick_gelu=flag).transformer.resblocks[0].mlp.gelu(x) for flag in (True, False))
    torch.testing.assert_close(quick, x / (1 + torch.exp(-1.702 * x)))
    torch.testing.assert_close(exact, x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    for flag, kind in ((True, QuickGELU), (False, torch.nn.GELU)):
        assert type(small_clip(quick_gelu=flag).visual.transformer.resblocks[1].mlp.gelu) is kind


def test_image_tower_equals_the_same_steps_one_patch_at_a_time():
    model, images = small_clip(), torch.randn(2, 3, 32, 32)
    visual = model.visual
    patches = [images[:, :, top : top + 16, left : left + 16] for top in (0, 16) for left in (0, 16)]
    tokens = [visual.class_embedding.expand(2, -1)]
    tokens += [patch.flatten(1) @ visual.conv1.weight.flatten(1).T for patch in patches]
    x = visual.ln_pre(torch.stack(tokens, dim=1) + visual.positional_embedding)
    for block in visual.transformer.resblocks:
        x = x + block.attn(block.ln_1(x))
        x = x + block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(block.ln_2(x))))
    torch.testing.assert_close(model.encode_image(images), visual.ln_post(x[:, 0]) @ visual.proj)


def plain_blocks(transformer, x):
    """Every step at every position, (n, L, width) -> (n, L, width)."""
    for block in transformer.resblocks:
        x = x + block.attn(block.ln_1(x))
        h = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(h * torch.sigmoid(1.702 * h) if isinstance(block.mlp.gelu, QuickGELU) else F.gelu(h))
    return x


def check_values_and_gradients(found, expected, module):
    """Both results and, for the same random gradient of them, the gradients of all parameters."""
    torch.testing.assert_close(found, expected)
    weights, parameters = torch.randn_like(expected), list(module.parameters())
    gradients = [torch.autograd.grad((y * weights).sum(), parameters, retain_graph=True) for y in (found, expected)]
    for ours, plain in zip(*gradients):
        torch.testing.assert_close(ours, plain)
    assert all(gradient.any() for gradient in gradients[0])


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_image_tower_has_the_values_and_gradients_of_all_positions_at_once(quick_gelu):
    model = small_clip(quick_gelu=quick_gelu, image_resolution=64, vision_patch_size=4, vision_width=64).double()
    visual = model.visual
    torch.nn.init.normal_(visual.transformer.resblocks[1].mlp.c_fc.bias)
    parts, images = [], torch.randn(65, 3, 64, 64).double()
    hook = visual.conv1.register_forward_pre_hook(lambda module, args: parts.append(len(args[0])))
    found = model.encode_image(images)
    hook.remove()
    assert parts == [63, 2]  # 2**20 // ((1 + 16 * 16) * 64): the MLP of a part stays below 16 MiB in float32
    x = torch.cat([visual.class_embedding.expand(65, 1, -1), visual.conv1(images).flatten(2).transpose(1, 2)], dim=1)
    x = plain_blocks(visual.transformer, visual.ln_pre(x + visual.positional_embedding))
    check_values_and_gradients(found, visual.ln_post(x[:, 0]) @ visual.proj, visual)
    assert model.encode_image(images[:0]).shape == (0, 24)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_text_tower_has_the_values_and_gradients_of_all_positions(quick_gelu):
    model, x, idx = (
        small_clip(quick_gelu=quick_gelu).double(),
        torch.randn(4, 9, 64).double(),
        torch.tensor([2, 8, 0, 5]),
    )
    torch.nn.init.normal_(model.transformer.resblocks[2].mlp.c_fc.bias)
    x.requires_grad_()
    plain = plain_blocks(model.transformer, x + model.positional_embedding)
    check_values_and_gradients(model.transformer(x + model.positional_embedding), plain, model.transformer)
    found, expected = model.encode_text_embeddings(x, idx), model.ln_final(plain[range(4), idx]) @ model.text_projection
    check_values_and_gradients(found, expected, model.transformer)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)))


def test_last_block_computes_only_the_positions_that_count():
    model, lengths = small_clip(), []
    for transformer in (model.visual.transformer, model.transformer):
        for block in transformer.resblocks:
            block.mlp.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    model.encode_image(torch.randn(2, 3, 32, 32))
    model.encode_text_embeddings(torch.randn(2, 7, 64), torch.tensor([3, 4]))
    assert lengths == [5, 1, 5, 5, 1]


def test_towers_work_under_bfloat16_autocast():
    model, images = small_clip(), torch.randn(3, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.encode_image(images)
    assert F.cosine_similarity(found.float(), model.encode_image(images)).min() > 0.9995


def test_short_texts_give_the_values_and_gradients_of_all_positions():
    model = small_clip().double()
    embeddings = torch.randn(3, 9, 64, dtype=torch.float64, requires_grad=True)
    eot_idx = torch.tensor([2, 5, 4])
    weights = torch.randn(3, 24, dtype=torch.float64)
    x = model.ln_final(model.transformer(embeddings + model.positional_embedding))
    full = x[torch.arange(3), eot_idx] @ model.text_projection
    (full_grad,) = torch.autograd.grad((full * weights).sum(), embeddings)
    short = model.encode_text_embeddings(embeddings, eot_idx)
    (short_grad,) = torch.autograd.grad((short * weights).sum(), embeddings)
    torch.testing.assert_close(short, full)
    torch.testing.assert_close(short_grad, full_grad)
    torch.testing.assert_close(model.encode_text_embeddings(embeddings[:, :6], eot_idx), full)
    assert short_grad[0, 2].abs().max() > 0 and short_grad[0, 3:].abs().max() == 0


def test_text_tower_computes_no_further_than_the_last_end_token(tiny):
    lengths = []
    hook = tiny.transformer.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    tiny.encode_text(tokenize(["!", "a video from a CCTV camera of a fighting"]))
    hook.remove()
    assert lengths == [11]  # nine words of one token each, start, end


def test_encode_text_looks_up_tokens_and_stops_at_the_first_end_token(tiny):
    tokens = tokenize(["a photo of a cat<|endoftext|> fighting", "Explosion"])
    expected = tiny.encode_text_embeddings(tiny.token_embedding(tokens), torch.tensor([6, 2]))
    torch.testing.assert_close(tiny.encode_text(tokens), expected)
    torch.testing.assert_close(tiny.encode_text(tokens)[:1], tiny.encode_text(tokenize("a photo of a cat")))


@pytest.mark.parametrize("eot_idx", [[1, 5], [-1, 2]])
def test_end_token_outside_the_embeddings_is_refused(eot_idx):
    with pytest.raises(ValueError, match=r"eot_idx must be in \[0, 5\)"):
        small_clip().encode_text_embeddings(torch.zeros(2, 5, 64), torch.tensor(eot_idx))


def test_text_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=r"eot_idx must be in \[0, 9\)"):
        small_clip().encode_text_embeddings(torch.zeros(1, 11, 64), torch.tensor([10]))


def test_images_of_another_size_are_refused():
    assert small_clip().visual.input_resolution == 32
    with pytest.raises(ValueError, match=r"images must be \(n, 3, 32, 32\) for this CLIP, got \(2, 3, 48, 32\)"):
        small_clip().encode_image(torch.zeros(2, 3, 48, 32))


def test_logits_are_scaled_cosines():
    model, images, tokens = small_clip(), torch.randn(2, 3, 32, 32), torch.tensor([[3, 49, 0], [5, 7, 49], [49, 0, 0]])
    logits_per_image, logits_per_text = model(images, tokens)  # (2, 3), (3, 2)
    cosines = F.cosine_similarity(model.encode_image(images)[:, None], model.encode_text(tokens)[None], dim=-1)
    torch.testing.assert_close(logits_per_image, cosines / 0.07)
    assert torch.equal(logits_per_text, logits_per_image.T)


def test_each_parameter_gets_a_gradient():
    model = small_clip().train()
    logits, _ = model(torch.randn(3, 3, 32, 32), torch.randint(1, 50, (3, 9)))
    F.cross_entropy(logits, torch.arange(3)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("heads", [0, 3])
def test_width_must_be_a_multiple_of_the_heads(heads):
    with pytest.raises((ValueError, AssertionError), match="embed_dim"):
        small_clip(transformer_heads=heads)


# ---------------------------------------------------------------- tokenizer and preprocessing


def test_all_reference_texts_have_openais_ids():
    found = tokenize([case["text"] for case in CASES["cases"]]).tolist()
    expected = [case["ids"] + [0] * (77 - len(case["ids"])) for case in CASES["cases"]]
    assert len(found) == 419
    wrong = [case["text"] for case, a, b in zip(CASES["cases"], found, expected) if a != b]
    assert wrong == []


@pytest.mark.parametrize("case", CASES["too_long"], ids=lambda case: case["text"][-12:])
def test_long_text_raises_or_is_cut_with_the_end_token_last(case):
    with pytest.raises(RuntimeError) as caught:
        tokenize(case["text"])
    assert str(caught.value) == case["error"]["message"]
    assert tokenize(case["text"], truncate=True)[0].tolist() == case["ids_truncate"]


def test_batch_of_texts_is_an_int_matrix():
    tokens = tokenize(CASES["batch_shape"]["texts"])
    assert tokens.dtype == torch.int32 and tokens.tolist() == CASES["batch_shape"]["matrix"]
    assert torch.equal(tokenize("Abuse"), tokens[:1])
    hits = clip_model._word_ids.cache_info().hits
    assert tokenize(["Abuse"], context_length=4).tolist() == [[49406, 7678, 49407, 0]]
    assert clip_model._word_ids.cache_info().hits == hits + 3  # start, the word, end


def test_entities_are_unescaped_twice():
    assert torch.equal(tokenize("<b> &amp;lt; c"), tokenize("<b> < c"))  # ftfy leaves entities beside a "<" alone


def test_file_works_when_copied_alone_with_its_merge_table(tmp_path):
    for name in ("clip_model.py", "bpe_merges.txt.gz"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    spec = importlib.util.spec_from_file_location("copied_clip_model", tmp_path / "clip_model.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    assert copied.tokenize("Abuse")[0, :3].tolist() == [49406, 7678, 49407]
    (tmp_path / "bpe_merges.txt.gz").unlink()
    copied.merge_table.cache_clear()
    with pytest.raises(FileNotFoundError, match="bpe_merges.txt.gz"):
        copied.tokenize("arson")


def test_top_level_imports_are_few_and_light():
    tree = ast.parse((ROOT / "clip_model.py").read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "ftfy", "regex"}


@pytest.mark.parametrize("name", PICTURES["images"])
def test_preprocessing_equals_openais(name):
    arrays = np.load(TESTDATA / "preprocess" / "expected.npz", allow_pickle=False)
    with Image.open(TESTDATA / "preprocess" / PICTURES["images"][name]["file"]) as image:
        found = preprocess(224)(image)
    mean, std = (torch.tensor(PICTURES[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    expected = (torch.from_numpy(arrays[f"{name}.uint8"]).permute(2, 0, 1) / 255 - mean) / std
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, ::4, ::4], torch.from_numpy(arrays[f"{name}.every4"]), rtol=0, atol=1e-6)


def test_preprocessing_goes_to_worker_processes():
    image = Image.new("L", (50, 40), 128)
    sent = pickle.loads(pickle.dumps(preprocess(32)))  # noqa: S301, ours
    assert torch.equal(sent(image), preprocess(32)(image))


# ---------------------------------------------------------------- layouts of weights


LAYOUTS = ["plain", "legacy", "checkpoint", "torchscript", "hf", "hf_file", "hf_bin", "open_clip", "text_prefix"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(tiny_files, layout):
    model, state = load(tiny_files[layout]), tiny_clip_state_dict()
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name].float()) for name in state)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32} and not model.training
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in model.parameters())
    check_features(model)


@pytest.mark.skipif(not SHARED_CLIP.exists(), reason="needs the reference files in ../shared")
@pytest.mark.parametrize(
    "file",
    [
        "openai_state_dict.pt",
        "openai_jit_archive.pt",
        "huggingface",
        "huggingface/model.safetensors",
        "open_clip_state_dict.pt",
    ],
)
def test_reference_files_give_openais_features(file):
    check_features(load(str(SHARED_CLIP / file)))


NO_WEIGHTS = ["I8", "I16", "I32", "I64", "U8", "BOOL", "U16", "U32", "U64", "F4", "F8_E8M0", "C64"]


@pytest.mark.parametrize("dtype", NO_WEIGHTS)
def test_safetensors_that_are_no_weights_are_passed_over_whatever_their_type(tmp_path, dtype):
    state, path = tiny_clip_state_dict(), tmp_path / "model.safetensors"
    write_safetensors(path, {"a_mask": torch.ones(2, 8, dtype=torch.uint8), "z_ids": torch.ones(16).byte(), **state})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header, data = json.loads(path.read_bytes()[8 : 8 + length]), path.read_bytes()[8 + length :]
    sizes = {"I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "F4": 0.5, "F8_E8M0": 1}
    for name in ("a_mask", "z_ids"):
        header[name] |= {"dtype": dtype, "shape": [int(16 / sizes.get(dtype, 8))]}
    header["b_empty"] = {"dtype": dtype, "shape": [0], "data_offsets": [16, 16]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    loaded = load(path).state_dict()
    assert all(torch.equal(loaded[name], state[name].float()) for name in state)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_weights_may_have_any_floating_type(tmp_path, dtype):
    state, path = {name: x.to(dtype) for name, x in tiny_clip_state_dict().items()}, tmp_path / "model.safetensors"
    write_safetensors(path, state)
    loaded = load(path).state_dict()
    assert all(torch.equal(loaded[name], state[name].float()) for name in state)


def test_weights_of_whole_numbers_are_named(tmp_path):
    for dtype in (torch.int8, torch.bool):
        state = tiny_clip_state_dict() | {"visual.proj": torch.ones(64, 64, dtype=dtype)}
        write_safetensors(tmp_path / "model.safetensors", state)
        assert f"visual.proj: expected (64, 64), found {dtype}" in refused(tmp_path / "model.safetensors")


PREFIXES = [
    *("_orig_mod.", "module.", "model.", "clip_model.", "clip.", "module._orig_mod.", "_orig_mod.module."),
    *("model.clip_model.", "module.model._orig_mod."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("names", ["openai", "huggingface"])
def test_weights_are_found_behind_the_prefixes_of_wrappers(tmp_path, prefix, names):
    state = tiny_clip_state_dict()
    theirs = hugging_face_state(state) if names == "huggingface" else state
    if names == "huggingface":
        write_hugging_face_config(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {prefix + name: x for name, x in theirs.items()})
    torch.save(
        {"epoch": 1, "state_dict": {prefix + name: x for name, x in theirs.items()}}, tmp_path / "lightning.ckpt"
    )
    for file in ("model.safetensors", "lightning.ckpt"):
        loaded = load(tmp_path / file, quick_gelu=True).state_dict()
        assert all(torch.equal(loaded[name], state[name].float()) for name in state)


def test_two_models_in_one_file_are_not_mixed(tmp_path):
    state = tiny_clip_state_dict()
    write_safetensors(
        tmp_path / "two.safetensors", {f"{p}.{k}": x for p in ("model", "module") for k, x in state.items()}
    )
    assert "holds several models" in refused(tmp_path / "two.safetensors")


@pytest.mark.parametrize("layout", ["plain", "torchscript"])
def test_a_changed_byte_of_a_tensor_is_noticed(tiny_files, tmp_path, layout):
    content = bytearray(tiny_files[layout].read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    assert ("is damaged" if layout == "plain" else "Bad CRC-32") in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("layout", ["plain", "torchscript", "hf", "open_clip"])
def test_hash_of_the_weights_does_not_depend_on_the_layout(tiny_files, layout):
    digest = hashlib.sha256()
    for name, tensor in sorted(tiny_clip_state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().numpy().tobytes())
    assert weights_hash(load(tiny_files[layout])) == digest.hexdigest()


def test_hash_sees_each_weight_each_name_and_each_buffer():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    hashes = {weights_hash(model), weights_hash(torch.nn.Sequential(model[0], torch.nn.ReLU(), model[1]))}
    for tensor in model.state_dict().values():
        tensor.view(-1)[-1] += 1
        hashes.add(weights_hash(model))
    assert len(hashes) == 2 + 7
    assert weights_hash(model) == weights_hash(model.double())


PUBLISHED_SIZES = {  # of OpenAI's four vision transformers: width, layers, patch, pixels, embed_dim, text width
    "ViT-B/32": (768, 12, 32, 224, 512, 512),
    "ViT-B/16": (768, 12, 16, 224, 512, 512),
    "ViT-L/14": (1024, 24, 14, 224, 768, 768),
    "ViT-L/14@336px": (1024, 24, 14, 336, 768, 768),
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_sizes_are_read_off_the_weights(name):
    width, layers, patch, pixels, embed_dim, text_width = PUBLISHED_SIZES[name]
    sizes = dict(
        embed_dim=embed_dim,
        image_resolution=pixels,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch,
        context_length=77,
        vocab_size=49408,
        transformer_width=text_width,
        transformer_heads=text_width // 64,
        transformer_layers=12,
    )
    with torch.device("meta"):
        state = CLIP(**sizes).state_dict()
    assert clip_model._sizes_of(state) == {**sizes, "vision_heads": width // 64}


def test_another_size_loads_and_computes_the_same(tmp_path):
    sizes = dict(
        embed_dim=20,
        image_resolution=36,
        vision_layers=3,
        vision_width=192,
        vision_patch_size=12,
        context_length=11,
        vocab_size=70,
        transformer_width=128,
        transformer_heads=2,
        transformer_layers=1,
    )
    model, images = CLIP(**sizes).eval(), torch.randn(2, 3, 36, 36)
    tokens = torch.tensor([[1, 5, 69, 0], [3, 69, 0, 0]])
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    again = load(tmp_path / "mine.pt")
    assert [block.attn.num_heads for block in again.visual.transformer.resblocks] == [3, 3, 3]
    for a, b in zip(again(images, tokens), model(images, tokens)):
        torch.testing.assert_close(a, b)


def test_vit_h_has_sixteen_heads_of_eighty():
    with torch.device("meta"):
        state = small_clip(vision_width=1280, vision_heads=16).state_dict()
    assert clip_model._sizes_of(state)["vision_heads"] == 16


def test_bfloat16_weights_are_upcast(tmp_path):
    model = small_clip().bfloat16()
    write_safetensors(tmp_path / "half.safetensors", model.state_dict())
    assert weights_hash(load(tmp_path / "half.safetensors")) == weights_hash(model)


def uses_quick_gelu(model: CLIP) -> bool:
    kinds = {type(block.mlp.gelu) for tower in (model, model.visual) for block in tower.transformer.resblocks}
    assert len(kinds) == 1
    return kinds == {QuickGELU}


@pytest.mark.parametrize(
    "filename, wrapped, scalar, config, expected",
    [
        ("mine.pt", False, False, None, True),  # OpenAI's names
        ("mine.pt", False, False, {}, False),  # a config that leaves quick_gelu at its default
        ("mine.pt", False, False, {"quick_gelu": True}, True),
        ("mine.pt", False, True, {"quick_gelu": False}, True),  # OpenAI's own file, whatever lies beside it
        ("mine.pt", True, False, None, False),  # a training checkpoint of open_clip
        ("vit-quickgelu.pt", True, False, None, True),
        ("open_clip_pytorch_model.bin", False, False, None, False),
        ("open_clip_pytorch_model.bin", False, False, {"quick_gelu": True}, True),
    ],
)
def test_activation_of_openais_and_open_clips_layout(tmp_path, filename, wrapped, scalar, config, expected):
    state = small_clip().state_dict() | ({"input_resolution": torch.tensor(32)} if scalar else {})
    torch.save({"state_dict": state} if wrapped else state, tmp_path / filename)
    if config is not None:
        write_open_clip_config(tmp_path, **config)
    assert uses_quick_gelu(load(tmp_path / filename)) is expected
    assert uses_quick_gelu(load(tmp_path / filename, quick_gelu=not expected)) is not expected


def test_activation_and_heads_come_from_hugging_faces_config(tmp_path):
    state = hugging_face_state(tiny_clip_state_dict())
    write_safetensors(tmp_path / "model.safetensors", state)
    assert uses_quick_gelu(load(tmp_path))  # no config: the default
    write_hugging_face_config(tmp_path, text_heads=4, vision_heads=2, text_act="gelu", vision_act="gelu")
    model = load(tmp_path)
    assert not uses_quick_gelu(model) and uses_quick_gelu(load(tmp_path, quick_gelu=True))
    assert model.transformer.resblocks[1].attn.num_heads == 4
    assert model.visual.transformer.resblocks[1].attn.num_heads == 2
    (tmp_path / "config.json").write_text('{"text_config": {}, "vision_config": {"num_attention_heads": 4}}')
    model = load(tmp_path)
    assert uses_quick_gelu(model) and model.transformer.resblocks[0].attn.num_heads == 8  # Hugging Face's defaults
    for text_act, vision_act in (("gelu", "quick_gelu"), ("relu", "relu")):
        write_hugging_face_config(tmp_path, text_act=text_act, vision_act=vision_act)
        with pytest.raises(WeightsError, match="hidden_act must be quick_gelu or gelu"):
            load(tmp_path)


def test_heads_come_from_open_clips_config(tmp_path):
    torch.save(small_clip().state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    write_open_clip_config(tmp_path, vision_cfg={"head_width": 32}, text_cfg={"heads": 2})
    model = load(tmp_path)
    assert model.visual.transformer.resblocks[0].attn.num_heads == 4
    assert model.transformer.resblocks[0].attn.num_heads == 2


# ---------------------------------------------------------------- files that are wrong or hostile


class RunsACommand:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def torch_zip(path: Path, content_pickle: bytes, torchscript: bool, members: dict | None = None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content_pickle)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        if torchscript:
            archive.writestr("archive/constants.pkl", pickle.dumps((), protocol=2))
        for name, data in (members or {}).items():
            archive.writestr(f"archive/{name}", data)


def repacked(source: Path, target: Path, change):
    """A copy of a torch file whose pickle went through `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, change(data) if member.filename.endswith("/data.pkl") else data)


def refused(path: Path) -> str:
    """Loading fails with one line that names the file, and quickly."""
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        load(path)
    assert time.monotonic() - start < 5
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("torchscript", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_no_command_in_a_file_is_run(tmp_path, torchscript, wrapped):
    evil = RunsACommand(tmp_path / "marker")
    torch_zip(tmp_path / "evil.pt", pickle.dumps({"x": evil} if wrapped else evil, protocol=2), torchscript)
    assert "refused" in refused(tmp_path / "evil.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(evil, protocol=2))
    assert "refused" in refused(tmp_path / "old.pt")
    assert not (tmp_path / "marker").exists()
    os.system(f"touch {tmp_path / 'marker'}")  # noqa: S605, the command itself works
    assert (tmp_path / "marker").exists()


SAFETENSORS_ATTACKS = {  # an entry of 16 bytes of data, and a part of the message
    "beyond the file": ({"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}, "claims shape"),
    "a gap before it": ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "claims shape"),
    "a terabyte": ({"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}, "claims shape"),
    "a terabyte in 16 bytes": ({"dtype": "F32", "shape": [2**38], "data_offsets": [0, 16]}, "claims shape"),
    "backwards": ({"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}, "claims shape"),
    "negative": ({"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]}, "claims shape"),
    "two negatives": ({"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}, "cannot be read"),
    "before the data": ({"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}, "claims shape"),
    "shape too small": ({"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}, "claims shape"),
    "unknown type": ({"dtype": "F33", "shape": [4], "data_offsets": [0, 16]}, "lacks"),
    "unknown type, backwards": ({"dtype": "F33", "shape": [4], "data_offsets": [0, -16]}, "claims shape"),
    "no offsets": ({"dtype": "F32", "shape": [4]}, "data_offsets"),
    "no entry": (7, "TypeError"),
}


@pytest.mark.parametrize("attack", SAFETENSORS_ATTACKS)
def test_safetensors_entry_that_does_not_fit_is_refused(tmp_path, attack):
    path, (entry, message) = tmp_path / "evil.safetensors", SAFETENSORS_ATTACKS[attack]
    write_safetensors(path, {"a": torch.zeros(4)}, {"a": entry})
    assert message in refused(path)
    write_safetensors(path, {"a": torch.zeros(4)})
    assert clip_model._read_safetensors(path)["a"].tolist() == [0, 0, 0, 0]


def test_safetensors_tensors_must_not_share_bytes(tmp_path):
    entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": [i, i + 8]} for name, i in (("a", 0), ("b", 4))}
    write_safetensors(tmp_path / "evil.safetensors", {"a": torch.zeros(4)}, entries)
    assert "b claims shape [2] at bytes 4 to 12, not 8 to 16" in refused(tmp_path / "evil.safetensors")


def test_messages_stay_on_one_line(tmp_path):
    write_safetensors(tmp_path / "evil.safetensors", {}, {"a\nb": SAFETENSORS_ATTACKS["a terabyte"][0]})
    refused(tmp_path / "evil.safetensors")


@pytest.mark.parametrize("header_length", [2**60, 2**63, 10**7, 5])
def test_safetensors_header_length_is_checked(tmp_path, header_length):
    write_safetensors(tmp_path / "evil.safetensors", {"a": torch.zeros(4)}, header_length=header_length)
    message = refused(tmp_path / "evil.safetensors")
    assert header_length == 5 or f"claims {header_length} bytes" in message


@pytest.mark.parametrize("header", [b"[" * 200_000, b'{"a":' * 200_000, b"[]", b"", b"\xff\xfe", b"9" * 9999])
def test_safetensors_header_that_is_no_flat_object_is_refused(tmp_path, header):
    (tmp_path / "evil.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(tmp_path / "evil.safetensors")


@pytest.mark.parametrize("layout", ["plain", "torchscript"])
def test_storage_that_claims_more_than_the_file_holds_is_refused(tiny_files, tmp_path, layout):
    """77 * 64 = 4928 values of the positional embedding become 2**38; a stride of 0 becomes a view of a terabyte."""
    size, huge = b"M\x40\x13", b"\x8a\x05" + (2**38).to_bytes(5, "little")  # pickled 4928, pickled 2**38
    path = tmp_path / "evil.pt"
    repacked(tiny_files[layout], path, lambda data: data.replace(size, huge, 1))
    refused(path)
    rows = {"plain": (b"KMK@\x86", b"K@K\x01\x86"), "torchscript": (b"(KMK@t", b"(K@K\x01t")}[layout]
    endless = (rows[0].replace(b"KM", huge), rows[1].replace(b"K@", b"K\x00"))

    def stretch(data):
        start = data.index(rows[0])
        shape, strides = data[start:].replace(rows[0], endless[0], 1), rows[1]
        return data[:start] + shape.replace(strides, endless[1], 1)

    repacked(tiny_files[layout], path, stretch)
    assert "claim more than 10 times" in refused(path)


@pytest.mark.parametrize("torchscript", [True, False])
def test_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, torchscript):
    path = tmp_path / "bomb.pt"
    torch_zip(path, pickle.dumps({}), torchscript)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    assert "unpacks to more than 10 times" in refused(path)


MODULE = b"c__torch__.m\nM\n)\x81"  # one object of an archive's own class


NAMED_A, NAMED_B = b"X\x01\x00\x00\x00a", b"X\x01\x00\x00\x00b"
STRANGE_PICKLES = {
    "a module that contains itself": MODULE + b"q\x00}" + NAMED_A + b"h\x00sb",
    "modules 3000 deep": (MODULE + b"}" + NAMED_A) * 3000 + MODULE + b"sb" * 3000,
    "2**60 paths": MODULE + b"q\x00" + (MODULE + b"}(" + NAMED_A + b"h\x00" + NAMED_B + b"h\x00ubq\x00") * 60,
    "a number": b"K\x07",
    "a list": b"]",
    "nothing": b"",
    "an empty memo": b"h\x05",
    "eval": b"cbuiltins\neval\n",
    "a class of the package": b"ctorch.serialization\nload\n",
}


@pytest.mark.parametrize("attack", STRANGE_PICKLES)
def test_strange_torchscript_pickles_are_refused(tmp_path, attack):
    torch_zip(tmp_path / "evil.pt", b"\x80\x02" + STRANGE_PICKLES[attack] + b".", torchscript=True)
    refused(tmp_path / "evil.pt")


def test_a_storage_that_is_named_often_is_read_once(tmp_path):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    layout = b"K\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)R"  # offset 0, size (4,), stride (1,)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + b"tR"
    content = b"\x80\x02" + MODULE + b"}(" + NAMED_A + tensor + NAMED_B + tensor + b"ub."
    values = struct.pack("<4f", 1, 2, 3, 4)
    torch_zip(tmp_path / "twice.pt", content, torchscript=True, members={"data/0": values})
    state = clip_model._read_torch(tmp_path / "twice.pt")
    assert state["a"].tolist() == [1, 2, 3, 4] and state["a"].data_ptr() == state["b"].data_ptr()


def test_a_memo_index_in_the_pickle_does_not_choose_the_memory(tmp_path):
    content = b"\x80\x02" + MODULE + b"r" + struct.pack("<I", 10**7) + b"."  # a table of 160 MB in C's unpickler
    torch_zip(tmp_path / "evil.pt", content, torchscript=True)
    tracemalloc.start()
    refused(tmp_path / "evil.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x80\x02}q\x00.", pickle.dumps([1, 2], 2)])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_files_that_are_something_else_are_refused(tmp_path, content, suffix):
    (tmp_path / f"file{suffix}").write_bytes(content)
    refused(tmp_path / f"file{suffix}")


@pytest.mark.parametrize(
    "content", [[], torch.zeros(3), {"a": 1}, {"a": torch.zeros(3)}, {"state_dict": 3}, {3: torch.zeros(2)}]
)
def test_torch_files_that_are_no_clip_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    refused(tmp_path / "other.pt")


def test_half_a_file_is_refused(tiny_files, tmp_path):
    for layout in ("plain", "torchscript", "hf_file"):
        path = tmp_path / f"half{tiny_files[layout].suffix}"
        data = tiny_files[layout].read_bytes()
        path.write_bytes(data[: len(data) // 2])
        refused(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("ln_final.bias"), r"ln_final.bias: expected \(64,\), found nothing"),
        (lambda state: state.update(extra=torch.zeros(2)), r"extra: expected nothing, found \(2,\)"),
        (
            lambda state: state.update({"ln_final.bias": torch.zeros(63)}),
            r"ln_final.bias: expected \(64,\), found \(63,\)",
        ),
        (
            lambda state: state.update({"visual.proj": torch.zeros(128, 24, dtype=torch.int64)}),
            r"visual.proj: expected \(128, 24\), found torch.int64",
        ),
        (lambda state: state.pop("visual.positional_embedding"), "no CLIP with a vision transformer: lacks visual.pos"),
        (lambda state: state.update({"visual.conv1.weight": torch.zeros(4)}), "cannot be read as CLIP weights"),
        (
            lambda state: state.update({"visual.positional_embedding": torch.zeros(6, 128)}),
            "visual.positional_embedding",
        ),
        (
            lambda state: state.pop("transformer.resblocks.1.ln_1.weight"),
            r"transformer.resblocks.1.ln_1.weight: expected \(64,\), found nothing",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    state = small_clip().state_dict()
    change(state)
    torch.save(state, tmp_path / "mine.pt")
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "mine.pt")


@pytest.mark.parametrize("config", ["", "[" * 100_000, "[1]", '{"model_cfg": 3}', '{"model_cfg": {"vision_cfg": {}}}'])
def test_a_bad_config_is_refused(tmp_path, config):
    torch.save(small_clip().state_dict(), tmp_path / "mine.pt")
    (tmp_path / "open_clip_config.json").write_text(config)
    assert "open_clip_config.json" in refused(tmp_path / "mine.pt") or len(config) > 2


def test_a_path_that_is_nothing_is_told_with_the_model_names(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing.pt", tmp_path / "folder"):
        assert "ViT-B/32, ViT-B/16" in refused(path)
    with pytest.raises(WeightsError, match="ViT-B/61: no file"):
        load("ViT-B/61")


# ---------------------------------------------------------------- download


@pytest.fixture
def published(tmp_path, tiny_files, monkeypatch) -> Path:
    """Publishes the tiny CLIP as "ViT-B/16" in a local folder; returns its file. The cache is tmp_path / "cache"."""
    data = tiny_files["torchscript"].read_bytes()
    file = tmp_path / "server" / hashlib.sha256(data).hexdigest() / "ViT-B-16.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    monkeypatch.setitem(clip_model._URLS, "ViT-B/16", file.as_uri())
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    return file


def test_a_model_name_is_fetched_once(published, tmp_path, capfd):
    check_features(load("ViT-B/16"))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["ViT-B-16.pt"]
    published.unlink()
    check_features(load("ViT-B/16"))  # from the cache
    assert capfd.readouterr() == ("", "")  # quiet: no terminal


def test_a_damaged_download_is_not_kept(published, tmp_path):
    published.write_bytes(published.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=f"cannot fetch ViT-B/16 .*invalid hash.*{published.parent.name}"):
        load("ViT-B/16")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_cached_file_is_fetched_again(published, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ViT-B-16.pt").write_bytes(b"damaged")
    check_features(load("ViT-B/16"))
    assert (tmp_path / "cache" / "ViT-B-16.pt").read_bytes() == published.read_bytes()


def test_a_fetch_that_fails_at_the_end_leaves_nothing(published, tmp_path):
    (tmp_path / "cache" / "ViT-B-16.pt" / "in the way").mkdir(parents=True)
    with pytest.raises(WeightsError, match="cannot fetch ViT-B/16"):
        load("ViT-B/16")
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["ViT-B-16.pt"]


def test_without_network_the_file_and_its_place_are_named(tmp_path, monkeypatch):
    url = "http://127.0.0.1:9/" + "0" * 64 + "/ViT-B-32.pt"  # nobody listens on port 9
    monkeypatch.setitem(clip_model._URLS, "ViT-B/32", url)
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError) as caught:
        load("ViT-B/32")
    assert f"put the file {url} at {tmp_path / 'cache' / 'ViT-B-32.pt'}" in str(caught.value)
    assert "\n" not in str(caught.value) and "Connection refused" in str(caught.value)


@pytest.mark.parametrize("cache", [None, "", "~/weights", "~nobody-of-this-name/weights"])
def test_without_a_home_a_line_names_the_variable_and_the_way_around(monkeypatch, cache):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    monkeypatch.setenv("CLIP_CACHE", cache) if cache is not None else monkeypatch.delenv("CLIP_CACHE", raising=False)
    with pytest.raises(WeightsError, match="^ViT-B/16: no home folder .* set CLIP_CACHE to a folder or give a file"):
        load("ViT-B/16")


def test_published_addresses_end_with_a_hash_and_the_file_name():
    assert available_models() == ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]
    for name in available_models():
        host, sha256, file = clip_model._URLS[name].rsplit("/", 2)
        assert host == "https://openaipublic.azureedge.net/clip/models"
        assert len(sha256) == 64 and int(sha256, 16) and file == name.replace("/", "-").replace("@", "-") + ".pt"


# ---------------------------------------------------------------- other implementations, where they are installed


def openai_clip_module():
    """`model.py` of OpenAI's package alone: its __init__ needs packages that no longer exist."""
    spec = importlib.util.find_spec("clip")
    if spec is None or not spec.origin or not (path := Path(spec.origin).with_name("model.py")).exists():
        pytest.skip("OpenAI's clip is not installed")
    spec = importlib.util.spec_from_file_location("openai_clip_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(theirs, model: CLIP):
    images, tokens = torch.randn(3, 3, 32, 32), torch.tensor([[4, 7, 49, 0, 0, 0, 0, 0, 0], [9] * 8 + [49]])
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), theirs.encode_image(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens), theirs.encode_text(tokens), rtol=0, atol=1e-5)


def test_equals_openais_clip(tmp_path):
    torch.manual_seed(1)
    theirs = openai_clip_module().CLIP(**{**SMALL, "transformer_heads": 1}).eval()
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    compare(theirs, load(tmp_path / "model.pt"))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_equals_open_clip(tmp_path, quick_gelu):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(1)
    vision = {"image_size": 32, "patch_size": 16, "width": 128, "layers": 2, "head_width": 32}
    text = {"context_length": 9, "vocab_size": 50, "width": 64, "heads": 2, "layers": 3}
    theirs = open_clip.model.CLIP(24, vision, text, quick_gelu=quick_gelu).eval()
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    write_open_clip_config(tmp_path, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu)
    compare(theirs, load(tmp_path))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_equals_transformers(tmp_path, activation):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    text = {
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 9,
        "hidden_act": activation,
        "eos_token_id": 49,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 16,
        "hidden_act": activation,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    images, tokens = torch.randn(3, 3, 32, 32), torch.tensor([[4, 7, 49, 0, 0, 0, 0, 0, 0], [9] * 8 + [49]])
    with torch.no_grad():
        logits = theirs(input_ids=tokens, pixel_values=images).logits_per_image
        torch.testing.assert_close(model(images, tokens)[0], logits, rtol=0, atol=1e-5)
