#!/usr/bin/env bash
# llama.cpp (as of llama-cpp-python 0.3.36): which tokens a text becomes depends on `general.name` of the GGUF. Where the name has "phi-3" or "phi3" in it, in
# any case, special tokens take the white space after them along, whatever the architecture and the vocabulary say. So a copy of a
# file that says "better than phi-3" reads its chats otherwise; and a Phi-3 that is renamed loses what its tokenizer.json says.
#
#   findings/llama-cpp-tokens-by-name.sh        # makes a temporary folder, compiles llama.cpp there (minutes), prints, cleans up
#
# Seen: "<|user|>  hi" is [265, 259, 263] by one name and [265, 264] by the other, of two files that differ in the name alone.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
off="-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF"
CMAKE_ARGS="$off -DLLAVA_BUILD=OFF" venv/bin/pip install -q llama-cpp-python==0.3.36 gguf==0.19.0
venv/bin/python - <<'PYTHON' 2>/dev/null
import gguf
import llama_cpp

found = {}
for name in ("a model", "a model, better than phi-3"):
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += ["▁", "a", "h", "i", "▁hi", "hi", "<|user|>", "<|endoftext|>"]
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_name(name)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 6 + [3, 3])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    for add, value in ((writer.add_context_length, 64), (writer.add_embedding_length, 32), (writer.add_block_count, 1)):
        add(value)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(b"model.gguf", settings)
    text, ids = b"<|user|>  hi", (llama_cpp.llama_token * 16)()
    count = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(model), text, len(text), ids, 16, False, True)
    found[name] = list(ids[:count])
    print(f"general.name {name!r}: {text.decode()!r} is {found[name]}")
assert found == {"a model": [265, 259, 263], "a model, better than phi-3": [265, 264]}, found
print("as described")
PYTHON
