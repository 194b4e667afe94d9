"""Makes golden.json: what TRL 1.16's trainers make of the same rows and the same starting adapter: token ids, which of them are
learned, the losses of four steps and the adapter's final weights, in fp32 on the CPU, without dropout.

    python tests/golden/trl116/make.py        # with torch, transformers 5.24, peft and trl 1.16

The model is tiny; its weights and the adapter's are hashes of their places, so that tests make them anew (`weights` below).
"""

import base64
import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer  # noqa: E402
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

HERE = Path(__file__).resolve().parent
TOKENIZERS = HERE.parent / "tokenizers"
CONFIG = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1600,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
RATE, ROWS_A_STEP, STEPS = 2e-3, 2, 4

# ChatML with its line breaks before turns, and as models have it, behind them.
LINE = "{{ '\n' }}"
TURN = "{{ '<|im_start|>' + message['role'] + '\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
OTHER = TURN.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TURNS = "{% if message['role'] == 'assistant' %}" + TURN + "{% else %}" + OTHER + "{% endif %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
BEFORE = "{% for message in messages %}{% if not loop.first %}" + LINE + "{% endif %}" + TURNS + "{% endfor %}"
BEFORE += PROMPT.replace("{{ '", "{{ '\n")
BEHIND = "{% for message in messages %}" + TURNS + LINE + "{% endfor %}" + PROMPT

TOPICS = ["a river", "the moon", "été", "3.14", "two\nlines", "naïve café", "x = y + 1", "привет"]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


PAIRS = [{"prompt": f"Describe {topic}:", "completion": f" it is number {i}."} for i, topic in enumerate(TOPICS)]
TEXTS = [{"text": f"{topic} and {i} more things, such as {topic}."} for i, topic in enumerate(TOPICS)]
CHATS = [
    {"messages": [user(f"What is {topic}?"), assistant(f"It is {i}."), user("Sure?"), assistant(f"Yes, {topic}.")]}
    for i, topic in enumerate(TOPICS)
]
CHAT_PAIRS = [{"prompt": [user(row["prompt"])], "completion": [assistant(row["completion"].strip())]} for row in PAIRS]
PREFERENCES = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f" no idea about it, {i}"} for i, row in enumerate(PAIRS)
]
CHAT_PREFERENCES = [
    {"prompt": [user(row["prompt"])], "chosen": [assistant(row["chosen"].strip())], "rejected": [assistant(row["rejected"].strip())]}
    for row in PREFERENCES
]
LABELS = [{**row, "label": i % 2 == 0} for i, row in enumerate(PAIRS)]

# name, trainer, rows, settings of TRL, keys of a recipe
CASES = [
    ("sft, plain pairs", "sft", PAIRS, {}, "chat_template = false"),
    ("sft, plain text", "sft", TEXTS, {}, 'format = "text"'),
    ("sft, chats", "sft", CHATS, dict(assistant_only_loss=True), ""),
    ("sft, chat pairs", "sft", CHAT_PAIRS, {}, ""),
    ("sft, chat pairs, line break behind", "sft", CHAT_PAIRS, {}, ""),
    ("dpo, plain", "dpo", PREFERENCES, {}, 'objective = "dpo"\nchat_template = false'),
    ("dpo, chats", "dpo", CHAT_PREFERENCES, {}, 'objective = "dpo"'),
    ("dpo ipo, chats", "dpo", CHAT_PREFERENCES, dict(loss_type="ipo", beta=0.2), 'objective = { name = "dpo", loss = "ipo", beta = 0.2 }'),
    ("kto, plain", "kto", LABELS, {}, 'objective = "kto"\nchat_template = false'),
    ("cpo, chats", "cpo", CHAT_PREFERENCES, {}, 'objective = "cpo"'),
    (
        "simpo, chats",
        "cpo",
        CHAT_PREFERENCES,
        dict(loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, beta=1.5),
        'objective = { name = "simpo", beta = 1.5, gamma = 0.5 }',
    ),
    ("orpo, chats", "orpo", CHAT_PREFERENCES, {}, 'objective = "orpo"'),
]


class AnswersOnlyORPO(ORPOTrainer):
    """TRL's own counts the prompt's tokens in the chosen answers' loss, too; this one what CPO's counts: the answers'."""

    def concatenated_forward(self, model, batch):
        chosen, *others, _ = super().concatenated_forward(model, batch)
        counts = (batch["chosen_labels"][:, 1:] != -100).sum(-1)
        return chosen, *others, -(chosen * counts).sum() / counts.sum()


TRAINERS = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "cpo": (CPOTrainer, CPOConfig),
    "orpo": (AnswersOnlyORPO, ORPOConfig),
}


def mix(x: np.ndarray) -> np.ndarray:
    """lowbias32."""
    x = np.asarray(x, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D)) & low
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & low
    return x ^ (x >> np.uint64(16))


def weights(name: str, shape: list[int]) -> torch.Tensor:
    """Numbers from -1/8 to 1/8 by a hash of the name and the place; a norm's are around 1."""
    key = np.uint64(0)
    for char in name:
        key = mix(key ^ np.uint64(ord(char)))
    bits = mix(mix(np.arange(int(np.prod(shape)))) ^ key) >> np.uint64(8)
    values = (bits.astype(np.float64) * 2**-24 - 0.5) * 0.25 + ("norm" in name)
    return torch.from_numpy(values.astype(np.float32)).reshape(list(shape))


def load_model():
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).float()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights(f"base_model.model.{name}", list(parameter.shape)))
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(weights(name.replace(".default", ""), list(parameter.shape)))
    return model


def tokens(trainer) -> list[dict]:
    """Each row's ids and what is learned, of one or two sequences."""
    rows = []
    for row in trainer.train_dataset:
        def one(ids, learned):
            return {"ids": ids, "mask": [int(bool(value)) for value in learned]}

        if "chosen_labels" in row:
            pair = [one(row[f"{side}_input_ids"], [label != -100 for label in row[f"{side}_labels"]]) for side in ("chosen", "rejected")]
        elif "chosen_ids" in row:
            prompt = row["prompt_ids"]
            pair = [one(prompt + row[f"{side}_ids"], [0] * len(prompt) + [1] * len(row[f"{side}_ids"])) for side in ("chosen", "rejected")]
        elif "completion_ids" in row:
            pair = [one(row["prompt_ids"] + row["completion_ids"], [0] * len(row["prompt_ids"]) + [1] * len(row["completion_ids"]))]
        elif "completion_labels" in row:
            pair = [one(row["completion_input_ids"], [label != -100 for label in row["completion_labels"]])]
        elif "labels" in row:
            pair = [one(row["input_ids"], [label != -100 for label in row["labels"]])]
        else:
            learned = row.get("completion_mask") or row.get("assistant_masks") or [1] * len(row["input_ids"])
            pair = [one(row["input_ids"], learned)]
        rows.append(pair)
    return rows


def plain(template: str) -> str:
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def template_of(name: str) -> str:
    return BEHIND if "behind" in name else BEFORE


def run(name: str, kind: str, rows: list[dict], settings: dict) -> dict:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / "smollm")
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = template_of(name)
    trainer_class, config_class = TRAINERS[kind]
    common = dict(
        per_device_train_batch_size=ROWS_A_STEP, gradient_accumulation_steps=1, max_steps=STEPS, learning_rate=RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch", logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
        train_sampling_strategy="sequential", disable_tqdm=True, logging_nan_inf_filter=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        extra = dict(disable_dropout=True) if kind in ("cpo", "orpo", "dpo", "kto") else {}
        args = config_class(output_dir=folder, **common, **extra, **settings)
        trainer = trainer_class(model=load_model(), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        made = tokens(trainer)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    final = {
        key.replace(".default", ""): base64.b64encode(parameter.detach().numpy().astype("<f4").tobytes()).decode()
        for key, parameter in trainer.model.named_parameters()
        if "lora_" in key and ".ref." not in key
    }
    return {"rows": made, "losses": losses, "final": final}


def main() -> None:
    golden = {"config": CONFIG, "learning_rate": RATE, "batch_size": ROWS_A_STEP, "steps": STEPS, "cases": {}}
    for name, kind, rows, settings, recipe in CASES:
        golden["cases"][name] = {"template": plain(template_of(name)), "recipe": recipe, "data": rows, **run(name, kind, rows, settings)}
        print(name, golden["cases"][name]["losses"], flush=True)
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    (HERE / "golden.json").write_text(text.replace('"data":', '\n"data":').replace('"rows":', '\n"rows":') + "\n", encoding="utf-8")


main()
