"""Makes the goldens of tests/cpu/trl116.test.ts: what TRL 1.16's own trainers make of rows of data, from their tokens to the
weights after four steps.

    python tests/golden/trl116/make.py        # with trl 1.16.0, transformers 5.24.0, peft 0.21.2, torch 2.15

Every task starts from the same tiny model (written here, with the tokenizer of ../tokenizers/qwen3 and a chat template of our
own) and the same adapter, and sees its rows in order, two a step, in fp32 without dropout. Kept for each task: the rows, the
ids and the learned positions that the trainer feeds, the loss of each step, and the final weights.
"""

import copy
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

HERE = Path(__file__).resolve().parent
TOKENIZER = HERE.parent / "tokenizers" / "qwen3"
TEMPLATE = HERE / "template.jinja"
# Byte for byte as TRL knows it: for it TRL has one with {% generation %}, which it renders in its place.
QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
STEPS, BATCH, RATE = 4, 2, 5e-3

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}, "required": ["place"]},
    },
}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


PAIRS = [
    {"prompt": "2 + 2 =", "completion": " 4"},
    {"prompt": "The capital of France is", "completion": " Paris, of course."},
    {"prompt": "def f(x):\n", "completion": "    return x ** 2\n"},
    {"prompt": "Q: yes or no?\nA:", "completion": " no"},
    {"prompt": "Été", "completion": "hiver"},
]
TEXTS = [{"text": text} for text in ("Once upon a time.", "def g(y):\n    return -y\n", "Привет, мир!", "1, 2, 3, 4, 5", "a")]
CHATS = [
    {"messages": [user("Hi"), assistant("Hello!")]},
    {"messages": [{"role": "system", "content": "Be brief."}, user("2+2?"), assistant("4"), user("+3"), assistant("7")]},
    {"messages": [user("Write code"), assistant("    return 1\n")]},
    {"messages": [user("yes or no"), assistant("yes"), user("no or yes"), assistant("no or yes")]},
]
TOOLS = [
    {
        "messages": [
            user("Weather in Oslo?"),
            assistant("", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo", "days": 2}}}]),
            {"role": "tool", "content": "rain"},
            assistant("It rains."),
        ],
        "tools": [WEATHER],
    },
    {"messages": [user("Hi"), assistant("Hello.")], "tools": [WEATHER]},
    {"messages": [user("Bye"), assistant("Bye.")], "tools": []},
]
THOUGHTS = [
    {"messages": [user("2+2?"), assistant("4", reasoning_content="easy")]},
    {"messages": [user("3+3?"), assistant("6", reasoning_content="3 and 3\nis 6")]},
    {"messages": [user("Hi"), assistant("Hello.")]},
    {"messages": [user("2+3?"), assistant("5", reasoning_content="hm"), user("+1"), assistant("6", reasoning_content="5+1")]},
]
CHAT_PAIRS = [
    {"prompt": [user("Hi")], "completion": [assistant("Hello!")]},
    {"prompt": [user("2+2?"), assistant("4"), user("+3")], "completion": [assistant("7")]},
    {"prompt": [{"role": "system", "content": "Be brief."}, user("Why?")], "completion": [assistant("Because.")]},
    {"prompt": [user("So?")], "completion": [assistant("So.")]},
]
PREFERENCES = [
    {"prompt": [user("Hi")], "chosen": [assistant("Hello, friend!")], "rejected": [assistant("Go away")]},
    {"prompt": [user("2+2?"), assistant("4"), user("+3")], "chosen": [assistant("7")], "rejected": [assistant("It is eight.")]},
    {"prompt": [user("Why?")], "chosen": [assistant("Because.")], "rejected": [assistant("Why not?")]},
    {"prompt": [user("So?")], "chosen": [assistant("So it is.")], "rejected": [assistant("No.")]},
]
TOOL_PREFERENCES = [{**row, "tools": [WEATHER]} for row in PREFERENCES]
# As many as a batch has: TRL takes the answers of its reference point from the same batch, mlora from the next row of the file.
LABELLED = [
    {"prompt": [user("Hi")], "completion": [assistant("Hello, friend!")], "label": True},
    {"prompt": [user("2+2?")], "completion": [assistant("It is five.")], "label": False},
]
PLAIN_PREFERENCES = [
    {"prompt": "Hi:", "chosen": " Hello, friend!", "rejected": " Go away"},
    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " five or so"},
    {"prompt": "Why?", "chosen": " Because.", "rejected": " No."},
    {"prompt": "So?", "chosen": " So it is.", "rejected": " No."},
]

class AnswerOrpo(ORPOTrainer):
    """TRL counts the prompt's tokens in the chosen answer's own loss; here, as in mlora, the answer's alone."""

    def concatenated_forward(self, model, batch):
        chosen, rejected, logits, *rest = super().concatenated_forward(model, batch)
        labels = batch["chosen_labels"][:, 1:]
        rest[1] = torch.nn.functional.cross_entropy(logits[:, : labels.shape[1]].transpose(1, 2), labels)
        return chosen, rejected, logits, *rest


COMMON = dict(
    max_steps=STEPS,
    per_device_train_batch_size=BATCH,
    learning_rate=RATE,
    lr_scheduler_type="constant",
    warmup_steps=0,
    weight_decay=0.01,
    max_grad_norm=1.0,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    seed=7,
    disable_tqdm=True,
    max_length=512,
)
SFT = (SFTTrainer, SFTConfig)
TASKS = {
    "sft-pairs": (*SFT, PAIRS, {}),
    "sft-text": (*SFT, TEXTS, {}),
    "sft-chat": (*SFT, CHATS, dict(assistant_only_loss=True)),
    "sft-chat-whole": (*SFT, CHATS, {}),
    "sft-chat-pairs": (*SFT, CHAT_PAIRS, {}),
    "sft-qwen3": (*SFT, [CHATS[0], CHATS[2], *THOUGHTS[:3]], dict(assistant_only_loss=True)),
    "sft-tools": (*SFT, TOOLS, dict(assistant_only_loss=True)),
    "sft-thoughts": (*SFT, THOUGHTS, dict(assistant_only_loss=True)),
    "dpo": (DPOTrainer, DPOConfig, PREFERENCES, dict(beta=0.1)),
    "dpo-plain": (DPOTrainer, DPOConfig, PLAIN_PREFERENCES, dict(beta=0.3)),
    "dpo-tools": (DPOTrainer, DPOConfig, TOOL_PREFERENCES, dict(beta=0.1)),
    "kto": (KTOTrainer, KTOConfig, LABELLED, dict(beta=0.1)),
    "orpo": (AnswerOrpo, ORPOConfig, PREFERENCES, dict(beta=0.1)),
    "cpo": (CPOTrainer, CPOConfig, PREFERENCES, dict(beta=0.1, cpo_alpha=1.0)),
    "simpo": (CPOTrainer, CPOConfig, PREFERENCES, dict(beta=2.0, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=1.0)),
}


def tokenizer(template: Path = TEMPLATE) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = template.read_text(encoding="utf-8")
    return made


def write_model(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(("norm" in name) + 0.3 * torch.randn(parameter.shape, generator=random))
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def load() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32, attn_implementation="eager")


def write_adapter(folder: Path) -> None:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(load(), LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    random = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=random))
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)
    config.base_model_name_or_path = "model"
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()


class InOrder:
    """Rows in the order of the file."""

    def _get_train_sampler(self, *_, **__):
        return SequentialSampler(self.train_dataset)


def sequences_of(batch: dict) -> list[dict]:
    """The sequences of a batch as they are computed: ids without padding, and which of them are learned."""
    found = []

    def add(name: str, ids: torch.Tensor, attended: torch.Tensor, learned: torch.Tensor) -> None:
        for row in range(ids.shape[0]):
            real = attended[row].bool()
            found.append({"name": name, "ids": ids[row][real].tolist(), "mask": learned[row][real].int().tolist()})

    if "chosen_input_ids" in batch:  # ORPO and CPO
        for name in ("chosen", "rejected"):
            add(name, batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"], batch[f"{name}_labels"] != -100)
    elif "completion_mask" in batch:  # DPO: chosen rows first, then rejected ones; KTO: completions
        rows = batch["input_ids"].shape[0] // (1 if "label" in batch else 2)
        for at in range(0, batch["input_ids"].shape[0], rows):
            name = "completion" if "label" in batch else ["chosen", "rejected"][at // rows]
            part = slice(at, at + rows)
            add(name, batch["input_ids"][part], batch["attention_mask"][part], batch["completion_mask"][part])
    else:
        add("row", batch["input_ids"], batch["attention_mask"], batch["labels"] != -100)
    return found


def run(name: str, trainer_class: type, config_class: type, rows: list[dict], settings: dict) -> dict:
    model = PeftModel.from_pretrained(load(), HERE / "initial", is_trainable=True)
    with tempfile.TemporaryDirectory() as folder:
        known = {key: value for key, value in {**COMMON, **settings}.items() if key in config_class.__dataclass_fields__}
        assert set(settings) <= set(known), settings
        args = config_class(output_dir=folder, **known)
        ordered = type("Ordered", (InOrder, trainer_class), {})
        trainer = ordered(model=model, args=args, train_dataset=Dataset.from_list(copy.deepcopy(rows)), processing_class=tokenizer(QWEN3 if name == "sft-qwen3" else TEMPLATE))
        seen = []
        original = trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            seen.append(sequences_of({key: value for key, value in inputs.items()}))
            return original(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_loss
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(losses) == STEPS, losses
    weights = {key.replace(".default.", "."): value.detach().clone().contiguous() for key, value in trainer.model.named_parameters() if ".lora_" in key and ".default." in key}
    save_file(weights, HERE / f"{name}.safetensors")
    print(f"{name}: losses {losses}")
    return dict(rows=rows, settings=settings, steps=[dict(loss=loss, grad_norm=norm, sequences=of) for loss, norm, of in zip(losses, norms, seen, strict=True)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    for folder in ("model", "initial"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    write_model(HERE / "model")
    shutil.copy(QWEN3, HERE / "qwen3.jinja")
    write_adapter(HERE / "initial")
    tasks = {}
    for name, task in TASKS.items():
        tasks[name] = run(name, *task)
    versions = {package.__name__: package.__version__ for package in (torch, transformers, peft, trl)}
    text = json.dumps(dict(made_with=versions, batch=BATCH, rate=RATE, tasks=tasks), ensure_ascii=False, separators=(",", ":"))
    (HERE / "golden.json").write_text(text + "\n", encoding="utf-8")
