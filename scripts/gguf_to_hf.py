#!/usr/bin/env python3
"""Turn a llama-architecture GGUF file into a Hugging Face checkpoint directory.

    "$(scripts/pyenv.sh)" scripts/gguf_to_hf.py MODEL.gguf OUT_DIR [--dtype f16|bf16|f32] [--off-grid]

--off-grid rewrites the weights without changing the function (norm scales folded
into the projections, V/O rotated head by head, up/down rescaled), so that they no
longer lie on the 4-bit grid that they were quantised to: then an int4 copy of the
model differs from it, as it would for a full-precision checkpoint.

Writes config.json, generation_config.json, model.safetensors, tokenizer.json,
tokenizer_config.json and special_tokens_map.json.

Covers what SmolLM2 GGUFs need: general.architecture == "llama" (RMSNorm, RoPE,
SwiGLU, GQA, no biases), any quantisation that `gguf.quants` can dequantise, and
the byte-level BPE tokenizer ("gpt2") with the "smollm" pre-tokenizer. Anything
else is refused rather than guessed at.

Two things a naive converter gets wrong:
  * llama.cpp stores attn_q / attn_k with the rows of each head interleaved for
    its RoPE; they are put back in HF's half-split order here.
  * A Q4_1 value is d*q + m with d, m in fp16: it needs more bits than bf16 has.
    f16 keeps it within 1 ulp of f16, f32 keeps it exactly.
"""
import argparse
import json
import pathlib
import re
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file, save

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # gguf.TokenType.CONTROL
DTYPE_NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}


def hf_name(name):
    if name in TOP:
        return TOP[name]
    m = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not m or m.group(2) not in LAYER:
        raise SystemExit(f"unknown tensor {name}")
    return f"model.layers.{m.group(1)}.{LAYER[m.group(2)]}.weight"


def unpermute(w, n_head):
    """Inverse of llama.cpp's LlamaModel.permute (interleaved -> half-split rows)."""
    rows, cols = w.shape
    return w.reshape(n_head, rows // n_head // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def leave_grid(t, layers, heads, kv_heads, seed=0):
    """Function-preserving rewrite in float32; the names and shapes stay as they are."""
    rng = np.random.default_rng(seed)
    for i in range(layers):
        p = f"model.layers.{i}."
        w = lambda n: p + n + ".weight"
        for norm, users in (("input_layernorm", ("q_proj", "k_proj", "v_proj")),
                            ("post_attention_layernorm", ("gate_proj", "up_proj"))):
            for u in users:
                u = ("self_attn." if users[0] == "q_proj" else "mlp.") + u
                t[w(u)] = t[w(u)] * t[w(norm)][None, :]
            t[w(norm)] = np.ones_like(t[w(norm)])
        v, o = t[w("self_attn.v_proj")].copy(), t[w("self_attn.o_proj")].copy()
        hd, group = v.shape[0] // kv_heads, heads // kv_heads
        for g in range(kv_heads):
            q = np.linalg.qr(rng.standard_normal((hd, hd)))[0].astype(np.float32)
            v[g * hd:(g + 1) * hd] = q @ v[g * hd:(g + 1) * hd]
            for h in range(g * group, (g + 1) * group):
                o[:, h * hd:(h + 1) * hd] = o[:, h * hd:(h + 1) * hd] @ q.T
        t[w("self_attn.v_proj")], t[w("self_attn.o_proj")] = v, o
        s = np.exp(rng.normal(0.0, 0.25, t[w("mlp.up_proj")].shape[0])).astype(np.float32)
        t[w("mlp.up_proj")] = t[w("mlp.up_proj")] * s[:, None]
        t[w("mlp.down_proj")] = t[w("mlp.down_proj")] / s[None, :]


def to_bf16_bits(a):
    """float32 -> bfloat16 bit patterns, round to nearest even."""
    u = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(tensors, path, dtype):
    if dtype == "f32":
        return save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, path, {"format": "pt"})
    if dtype == "f16":
        return save_file({k: np.ascontiguousarray(v.astype(np.float16)) for k, v in tensors.items()}, path, {"format": "pt"})
    # numpy has no bfloat16: save the bit patterns as U16, then relabel them in the header
    # ("BF16" is one letter longer than "U16", so the header is written anew).
    blob = save({k: to_bf16_bits(v) for k, v in tensors.items()}, {"format": "pt"})
    n = int.from_bytes(blob[:8], "little")
    head = json.loads(blob[8:8 + n])
    for k, v in head.items():
        if k != "__metadata__":
            v["dtype"] = "BF16"
    h = json.dumps(head, separators=(",", ":")).encode()
    h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(len(h).to_bytes(8, "little") + h)
        f.write(memoryview(blob)[8 + n:])


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("gguf")
    ap.add_argument("out")
    ap.add_argument("--dtype", choices=list(DTYPE_NAMES), default="f16")
    ap.add_argument("--off-grid", action="store_true")
    a = ap.parse_args()
    r = GGUFReader(a.gguf)
    kv = {k: f.contents() for k, f in r.fields.items()}
    if kv["general.architecture"] != "llama":
        raise SystemExit(f"architecture {kv['general.architecture']!r}: only llama is handled")
    if "rope_freqs.weight" in {t.name for t in r.tensors} or "llama.rope.scaling.type" in kv:
        raise SystemExit("RoPE scaling is not handled")
    if kv["tokenizer.ggml.model"] != "gpt2" or kv["tokenizer.ggml.pre"] != "smollm":
        raise SystemExit("only the byte-level BPE 'smollm' tokenizer is handled")
    if kv.get("tokenizer.ggml.add_bos_token") or kv.get("tokenizer.ggml.add_space_prefix"):
        raise SystemExit("add_bos_token / add_space_prefix are not handled")
    heads = kv["llama.attention.head_count"]
    kv_heads = kv.get("llama.attention.head_count_kv", heads)
    hidden = kv["llama.embedding_length"]

    # ---- weights
    tensors, worst, kinds = {}, 0.0, {}
    for t in r.tensors:
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + 1
        if tuple(w.shape) != tuple(int(d) for d in reversed(t.shape)):
            raise SystemExit(f"{t.name}: shape {w.shape} against {tuple(t.shape)}")
        if t.name.endswith("attn_q.weight"):
            w = unpermute(w, heads)
        elif t.name.endswith("attn_k.weight"):
            w = unpermute(w, kv_heads)
        tensors[hf_name(t.name)] = w
    if a.off_grid:
        leave_grid(tensors, kv["llama.block_count"], heads, kv_heads)
    for name, w in tensors.items():
        if a.dtype == "f16":
            back = w.astype(np.float16).astype(np.float32)
        elif a.dtype == "bf16":
            back = (to_bf16_bits(w).astype(np.uint32) << 16).view(np.float32)
        else:
            back = w
        if not np.isfinite(back).all():
            raise SystemExit(f"{name}: not all of its values are finite in {a.dtype}; use --dtype f32")
        worst = max(worst, float(np.abs(w - back).max()))
    tied = "lm_head.weight" not in tensors
    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, str(out / "model.safetensors"), a.dtype)
    (out / "model.safetensors").chmod(0o644)

    # ---- config
    bos, eos = kv["tokenizer.ggml.bos_token_id"], kv["tokenizer.ggml.eos_token_id"]
    pad = kv.get("tokenizer.ggml.padding_token_id", eos)
    unk = kv.get("tokenizer.ggml.unknown_token_id")
    dump = lambda name, obj: (out / name).write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    dump("config.json", {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(tensors["model.embed_tokens.weight"].shape[0]),
        "hidden_size": hidden,
        "intermediate_size": kv["llama.feed_forward_length"],
        "num_hidden_layers": kv["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": kv.get("llama.rope.dimension_count", hidden // heads),
        "max_position_embeddings": kv["llama.context_length"],
        "rms_norm_eps": float(f"{kv['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(kv.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "initializer_range": 0.02,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": DTYPE_NAMES[a.dtype],
    })
    dump("generation_config.json", {
        "_from_model_config": True,
        "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad,
    })

    # ---- tokenizer
    toks = kv["tokenizer.ggml.tokens"]
    types = kv["tokenizer.ggml.token_type"]
    vocab = {t: i for i, t in enumerate(toks)}
    if len(vocab) != len(toks):
        raise SystemExit("duplicate tokens")
    merges = [m.split(" ") for m in kv["tokenizer.ggml.merges"]]
    if any(len(m) != 2 or m[0] not in vocab or m[1] not in vocab or "".join(m) not in vocab for m in merges):
        raise SystemExit("a merge names a token outside the vocabulary")
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}
             for i, t in enumerate(toks) if types[i] == CONTROL]
    dump("tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added,
        "normalizer": None,
        # llama.cpp's "smollm": split every digit off (\p{N}), then GPT-2's regex
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False, "vocab": vocab, "merges": merges},
    })
    special = {"bos_token": toks[bos], "eos_token": toks[eos], "pad_token": toks[pad]}
    if unk is not None:
        special["unk_token"] = toks[unk]
    names = [d["content"] for d in added]
    dump("special_tokens_map.json", {**special, "additional_special_tokens": [t for t in names if t in (toks[bos], toks[eos])]})
    dump("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": kv["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        **special,
        "additional_special_tokens": [toks[bos], toks[eos]],
        "added_tokens_decoder": {str(d["id"]): {k: v for k, v in d.items() if k != "id"} for d in added},
        "chat_template": kv.get("tokenizer.chat_template"),
    })

    n = sum(v.size for v in tensors.values())
    print(f"{len(tensors)} tensors, {n:,} parameters, from {kinds}; tied embeddings: {tied}; "
          f"stored as {a.dtype}, largest rounding {worst:.3g}", file=sys.stderr)


if __name__ == "__main__":
    main()
