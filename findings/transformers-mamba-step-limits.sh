#!/usr/bin/env bash
# transformers 5.24.0: Mamba 2 layers (Granite 4 hybrid, and in the same code Nemotron-H, Bamba, Falcon-H1) keep their steps within time_step_limit where they read a row of several tokens, and not where a
# cached token follows: mamba2_selective_state_update gets no limits. So a sequence that is generated over a cache, which is the default, is not what the model itself scores highest. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import torch
import transformers

transformers.logging.set_verbosity_error()


def model(limit):
    torch.manual_seed(1)
    config = transformers.GraniteMoeHybridConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64, shared_intermediate_size=48, num_local_experts=0, time_step_limit=limit,
        layer_types=["linear_attention", "full_attention"], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=16, mamba_chunk_size=16, bos_token_id=None, eos_token_id=None, pad_token_id=None, initializer_range=0.3,
    )
    return transformers.GraniteMoeHybridForCausalLM(config).eval()


def apart(limit):
    """How far the logits after a cached token are from those of the same row, read at once."""
    of, ids = model(limit), torch.randint(0, 64, (1, 12))
    with torch.no_grad():
        whole = of(input_ids=ids, use_cache=False).logits[0, -1]
        kept = of(input_ids=ids[:, :-1], use_cache=True).cache
        step = of(input_ids=ids[:, -1:], use_cache=True, cache=kept).logits[0, -1]
    return (whole - step).abs().max().item()


print("transformers", transformers.__version__)
free, limited = apart((0.0, float("inf"))), apart((0.01, 0.2))
print(f"logits after a cached token, apart from those of the row read at once: without limits {free:.1e}, with steps in 0.01 to 0.2 {limited:.1e}")
assert free < 1e-5 < 1e-3 < limited
PYTHON
