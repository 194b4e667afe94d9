"""Makes tests/golden/tokenizers: small tokenizers of the kinds that models of the Llama kind have, and what Python makes of
texts and conversations with them.

    python make_tokenizer.py [SMOLLM2_FOLDER]

Needs transformers (5.23) and tokenizers (0.23). Each folder holds a trained tokenizer.json, its tokenizer_config.json, and a
chat_template.jinja as the model family has it. The templates' assistant masks come from `return_assistant_tokens_mask`, by the
same template with {% generation %} put around what the assistant writes; that both render the same text is checked. With
SMOLLM2_FOLDER the ids of the real SmolLM2 are made as well.
"""

import hashlib
import json
import sys
from pathlib import Path

from pydoc_data.topics import topics
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent / "tokenizers"
VOCAB = 1500

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

LANGUAGES = [
    "Der Fluß fließt über die Brücke; daß er überläuft, hätte niemand geglaubt. ",
    "Le garçon a mangé l'œuf à la coque près de la forêt, où l'été s'achève déjà. ",
    "Привет, мир! Как дела сегодня? Всё хорошо, спасибо. Γειά σου Κόσμε, τι κάνεις; ",
    "你好，世界。今天天气很好。こんにちは世界、お元気ですか。안녕하세요 세계. ",
    "שלום עולם, מה שלומך היום? مرحبا بالعالم، كيف حالك اليوم؟ नमस्ते दुनिया, आप कैसे हैं? ",
    "for (int i = 0; i < n; ++i) {\n\t\tx[i] += 2 * y[i];  // see https://example.org/a?b=1&c=%20\n}\n",
    # What only some readers take for a numeral or for white space: merges across it show which is which.
    "x½ 3½y m² Ⅷa ½½ ² a\ufeff b \ufeff\ufeff c\u0085 d \u0085\u0085e  f\u0085\u0085 ",
]
CORPUS = [text for _, text in sorted(topics.items())][:40] + LANGUAGES * 30

# A text, or [text, times]. Long ones are kept as a hash of their ids.
TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "a",
    "Hello, world!",
    " leading and trailing ",
    "  two spaces, a\ttab and\r\nlines\n\n\n end \n",
    "don't we'll I'M they'VE it's 'S ſ'ſ",
    "0 1 22 333 4096 3.14159 1,000,000 2024-02-29 v1.2.3-rc4 ٣٤ Ⅷ ½ ² ①",
    "naïve café, Ærøskøbing, Łódź, e\u0301 vs \u00e9, \u1e9b\u0323, A\u030a, \u212b, q\u0323\u0307",
    "Привет, мир. Γειά σου. שלום. مرحبا",
    "עִבְרִית and العَرَبِيَّة mixed \u202bRTL\u202c",
    "你好，世界。こんにちは 안녕하세요 ｆｕｌｌ ﷽ 𠮷𝒳",
    "🙂👩‍👩‍👧‍👦🇨🇭👍🏽❤️ text",
    "def f(x):\n    return {'a': [x ** 2, ~x]}  # <- see https://example.org/?q=1&r=%20",
    "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nHi [/INST] Hello </s>",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><think>\nhm\n</think>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi <|eot_id|> x",
    "<|im_sta rt|> <|im_end| > im_start <s >",
    "x½ 3½y m² Ⅷa ½½ ² x½½ a\ufeff b \ufeff\ufeff c\u0085 d \u0085\u0085e  f\u0085\u0085 ",
    "\u0000 nul, \u0001\u001b[0m, \u0085 nel\u0085, \u00a0nbsp\u00a0, \u200b\ufeff bom\ufeff, \u2028\u2029, \u3000wide",
    "▁lower▁one▁ eighth block ▁ ▁▁",
    "\ufffd \ufdd0 \U0010ffff \U000e0041",
    "tab\t\t\tspaces   \u2003 em",
    "CRLF\r\nCR\rLF\n\r\n\r\r\n\n",
    [" ", 1000],
    ["\n", 300],
    ["a", 5000],
    ["ab", 50000],
    ["漢字", 3000],
    ["The quick brown fox, 42 times. ", 200],
    ["!?", 700],
]

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
CHATS = {
    "one turn": [(USER, "Hi"), (ASSISTANT, "Hello!")],
    "three turns": [(USER, "2+2?"), (ASSISTANT, "4"), (USER, "+3"), (ASSISTANT, "7"), (USER, "Bye"), (ASSISTANT, "Bye, bye.")],
    "system": [(SYSTEM, "Be brief."), (USER, "Name two\ncolours"), (ASSISTANT, "- red\n- blue"), (USER, "Più?"), (ASSISTANT, "Sì 🙂")],
    "answer that repeats the question": [(USER, "yes or no"), (ASSISTANT, "yes"), (USER, "no or yes"), (ASSISTANT, "no or yes")],
    "unicode": [(USER, "e\u0301 👩‍👩‍👧‍👦 שלום"), (ASSISTANT, "é \u212b 你好"), (USER, "\u0301x"), (ASSISTANT, "\u0301combining first")],
    "white space": [(USER, " padded "), (ASSISTANT, "a\n\n  b"), (USER, "\n"), (ASSISTANT, "c")],
    "question last": [(USER, "a"), (ASSISTANT, "b"), (USER, "c")],
    "specials in text": [(USER, "what is <|eot|> or <0x0A>?"), (ASSISTANT, "<0x0A> is a byte")],
}
THOUGHTS = {
    "thought": [(USER, "2+2?"), (ASSISTANT, "<think>\neasy\n</think>\n\n4")],
    "thought in an earlier turn": [
        (USER, "2+2?"),
        (ASSISTANT, "<think>\neasy\n</think>\n\n4"),
        (USER, "+3"),
        (ASSISTANT, "<think>\n4+3\n</think>\n\n7"),
    ],
}

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_MARKED = CHATML.replace(
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n'}}",
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_MARKED = LLAMA3_CHAT.replace(
    "{{ message['content'] | trim + '<|eot_id|>' }}",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}",
)
# The first Llama 3 wrote a generation prompt whether it was asked to or not.
LLAMA3_OPEN = LLAMA3_CHAT.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
LLAMA3_OPEN_MARKED = LLAMA3_MARKED.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set about = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set about = false %}{% endif %}{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and about %}{% set content = '<<SYS>>\n' + about + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA2_MARKED = LLAMA2_CHAT.replace(
    "{{ ' ' + content.strip() + ' ' + eos_token }}",
    "{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}",
)
# Mistral puts the system message before the last question, so that no conversation begins as its first part does.
MISTRAL_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set about = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}{% for message in turns %}"
    "{% if message['role'] == 'user' %}{% if about is defined and message == turns[(turns | length - 1) // 2 * 2] %}"
    "{{ '[INST] ' + about + '\n\n' + message['content'] + '[/INST]' }}{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% endif %}{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_MARKED = MISTRAL_CHAT.replace(
    "{{ ' ' + message['content'] | trim + eos_token }}",
    "{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}",
)


def qwen3_marked(template: str) -> str:
    """Around what the assistant writes after its header: thoughts too, where the template keeps them. Tool calls are left
    out."""

    def replace(old: str, new: str, times: int) -> None:
        nonlocal template
        assert template.count(old) >= times, old
        template = template.replace(old, new, times)

    header = "{{- '<|im_start|>' + message.role + '\\n"
    for body, times in [("<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n')", 1), ("' + content", 2)]:
        said = f"'{body}" if body.startswith("<") else "content"
        replace(f"{header}{body} }}}}", f"{header}' }}}}{{%- set said = {said} %}}", times)
    end = "{{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\" %}"
    marked = "{% generation %}{{- said + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}"
    replace(end, end.replace("{{- '<|im_end|>\\n' }}", marked), 1)
    return template


def special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def trained(tokenizer: Tokenizer, specials: list[AddedToken], **options) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=specials, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(split, specials: list[AddedToken], normalizer=None, **model) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def split(regex: str) -> list:
    return [
        pre_tokenizers.Split(Regex(regex), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def begin_with(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def make_smollm() -> Tokenizer:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = byte_level([words], special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    # Trained without it, so that there are merges that it must keep from happening.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    return tokenizer


def make_llama3() -> Tokenizer:
    headers = special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = byte_level(split(LLAMA3), headers, ignore_merges=True)
    begin_with(tokenizer, "<|begin_of_text|>")
    return tokenizer


def make_qwen3() -> Tokenizer:
    tokenizer = byte_level(split(QWEN), special("<|endoftext|>", "<|im_start|>", "<|im_end|>"), normalizers.NFC())
    plain = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return tokenizer


def make_llama2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]*"), "isolated")  # for training: words, runs of spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [AddedToken(f"<0x{byte:02X}>", special=True, normalized=False) for byte in range(256)]
    # A limit alone keeps others of the characters that are equally frequent at each run: so those of the file that is there.
    kept = json.loads((HERE / "llama2" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    alphabet = [token for token in kept if len(token) == 1]
    trained(tokenizer, [*special("<unk>", "<s>", "</s>"), *bytes_], limit_alphabet=len(alphabet), initial_alphabet=alphabet)
    parsed = json.loads(tokenizer.to_str())
    parsed["pre_tokenizer"] = None
    # Bytes are words of the vocabulary, not special tokens: "<0x0A>" in a text is six characters.
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(parsed))
    begin_with(tokenizer, "<s>")
    return tokenizer


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
# The same vocabulary under other settings: what a tokenizer.json may say of it. What is null is as it was.
VARIANTS = {
    "llama2 first": ("llama2", {"normalizer": None, "pre_tokenizer": METASPACE}),
    "llama2 always, split": ("llama2", {"normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": "always", "split": True}}),
    "llama2 never": ("llama2", {"normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": "never"}}),
    "smollm, digits together": (
        "smollm",
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                ],
            }
        },
    ),
    "gpt2": ("smollm", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}}),
}


def encoded(tokenizer: Tokenizer) -> list:
    rows = []
    for entry in TEXTS:
        text = entry if isinstance(entry, str) else entry[0] * entry[1]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        whole = len(ids) <= 200
        value = ids if whole else {"count": len(ids), "sha256": hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()}
        back = tokenizer.decode(ids, skip_special_tokens=False)
        rows.append({"text": entry, "ids": value, **({} if back == text or not whole else {"decoded": back})})
    return rows


def chats_of(tokenizer: PreTrainedTokenizerFast, plain: str, marked: str, chats: dict) -> dict:
    rows = {}
    for name, turns in chats.items():
        messages = [{"role": role, "content": content} for role, content in turns]
        text = tokenizer.apply_chat_template(messages, chat_template=plain, tokenize=False)
        assert text == tokenizer.apply_chat_template(messages, chat_template=marked, tokenize=False), name
        options = {"chat_template": marked, "return_dict": True, "return_assistant_tokens_mask": True}
        out = tokenizer.apply_chat_template(messages, **options)
        assert out["input_ids"] == tokenizer.apply_chat_template(messages, chat_template=plain, return_dict=True)["input_ids"]
        rows[name] = {"messages": messages, "text": text, "ids": out["input_ids"], "mask": out["assistant_masks"]}
    return rows


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    qwen3 = (HERE / "qwen3" / "chat_template.jinja").read_text(encoding="utf-8")  # Qwen3's own, Apache-2.0
    kinds = {
        "smollm": (make_smollm(), "<|im_start|>", "<|im_end|>", {"": (CHATML, CHATML_MARKED)}),
        "llama3": (
            make_llama3(),
            "<|begin_of_text|>",
            "<|eot_id|>",
            {"": (LLAMA3_CHAT, LLAMA3_MARKED), "open": (LLAMA3_OPEN, LLAMA3_OPEN_MARKED)},
        ),
        "qwen3": (make_qwen3(), None, "<|im_end|>", {"": (qwen3, qwen3_marked(qwen3))}),
        "llama2": (
            make_llama2(),
            "<s>",
            "</s>",
            {"": (LLAMA2_CHAT, LLAMA2_MARKED), "mistral": (MISTRAL_CHAT, MISTRAL_MARKED)},
        ),
    }
    cases = {}
    for kind, (tokenizer, bos, eos, templates) in kinds.items():
        folder = HERE / kind
        write(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
        write(folder / "tokenizer_config.json", {"bos_token": bos, "eos_token": eos})
        fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token=bos, eos_token=eos)
        chats = {}
        for name, (plain, marked) in templates.items():
            file = "chat_template.jinja" if name == "" else f"{name}.jinja"
            (folder / file).write_text(plain, encoding="utf-8")
            chats[file] = chats_of(fast, plain, marked, {**CHATS, **THOUGHTS} if kind == "qwen3" else CHATS)
        begins = tokenizer.encode("a").ids != tokenizer.encode("a", add_special_tokens=False).ids
        cases[kind] = {"base": kind, "changes": {}, "addBos": begins, "texts": encoded(tokenizer), "chats": chats}
    for name, (base, changes) in VARIANTS.items():
        parsed = {**json.loads((HERE / base / "tokenizer.json").read_text(encoding="utf-8")), **changes}
        tokenizer = Tokenizer.from_str(json.dumps(parsed))
        cases[name] = {"base": base, "changes": changes, "addBos": base == "llama2", "texts": encoded(tokenizer), "chats": {}}
    for kind, case in cases.items():
        write(HERE / "cases" / f"{kind.replace(', ', '-').replace(' ', '-')}.json", case)
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        fast = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), bos_token=config["bos_token"], eos_token=config["eos_token"]
        )
        name = "named SmolLM, trained by Hugging Face"
        plain, marked = (text.replace("assistant<|im_end|>", f"assistant {name}<|im_end|>") for text in (CHATML, CHATML_MARKED))
        assert plain == config["chat_template"], config["chat_template"]
        chats = chats_of(fast, plain, marked, CHATS)
        write(HERE / "cases" / "smollm2-real.json", {"texts": encoded(tokenizer), "chats": {"chat_template.jinja": chats}})


main()
