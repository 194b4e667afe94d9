"""Makes defaults.json: what the configuration classes of transformers take for each key that a config.json leaves out, of the
model types that tests/pure/config-defaults.test.ts reads.

    python make.py

Needs transformers (5.24). Infinite limits are left out, as JSON has none, and so is what no file of a text model has.
"""

import json
import math
from pathlib import Path

from transformers import AutoConfig

TYPES = "llama mistral qwen2 qwen3 ministral3 smollm3 granite granitemoe granitemoehybrid phi3 olmo2 olmo3 gemma2 mixtral qwen3_moe gpt_oss qwen3_next lfm2 nemotron_h deepseek_v3 glm4_moe_lite youtu minicpm3"
OTHER = {"id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder", "transformers_version", "_name_or_path"}


def is_given(key: str, value: object) -> bool:
    infinite = any(isinstance(one, float) and math.isinf(one) for one in (value if isinstance(value, list | tuple) else [value]))
    return key not in OTHER and not infinite


found = {name: {key: value for key, value in AutoConfig.for_model(name).to_dict().items() if is_given(key, value)} for name in TYPES.split()}
lines = [f"{json.dumps(name)}: {json.dumps(config, separators=(',', ':'))}" for name, config in found.items()]
(Path(__file__).parent / "defaults.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
