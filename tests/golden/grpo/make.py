"""Makes grpo.json, which mlora's GRPO is tested against: what TRL's own GRPOTrainer makes of rewards (advantages, masks and
logged numbers) and of log-probabilities (the loss and its slopes by them), in float64; with a temperature, of logits.

    python tests/golden/grpo/make.py       # with trl==1.16.0

The trainer's methods are called on a bare object: only generation, reward functions and the model are replaced, by numbers.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import selective_log_softmax

HERE = Path(__file__).resolve().parent
EOS, PAD = 1, 0
GENERATIONS, GROUPS = 4, 3
LENGTHS = [3, 5, 1, 4, 2, 2, 6, 3, 5, 4, 1, 3]
ENDED = [True, True, True, False, True, True, False, True, True, True, True, False]
LIMIT = 6
random = torch.Generator().manual_seed(20261)


def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape, generator=random, dtype=torch.float64)


class Accelerator(SimpleNamespace):
    device = torch.device("cpu")
    process_index, num_processes = 0, 1
    gather = gather_for_metrics = staticmethod(lambda t: t)
    reduce = staticmethod(lambda t, reduction: t)


def completions() -> list[list[int]]:
    return [[7] * (n - 1) + [EOS if ended else 7] for n, ended in zip(LENGTHS, ENDED, strict=True)]


def padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def trainer_of(o: dict, ref: torch.Tensor | None, old: torch.Tensor, rewards: torch.Tensor) -> SimpleNamespace:
    ids = completions()
    # The context that TRL enters asks a model whether it checkpoints its activations.
    model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    ref_model = SimpleNamespace()
    names = [f"r{i}" for i in range(rewards.size(1))]
    return SimpleNamespace(
        accelerator=Accelerator(), model=model, ref_model=ref_model, environment_factories=None, environments=None, tools=None, _is_vlm=False,
        _generate=lambda prompts: ([[5, 6]] * len(ids), ids, None, ["" for _ in ids], None, {}, None, []),
        _calculate_rewards=lambda *_: rewards, reward_funcs=names, reward_func_names=names,
        reward_weights=torch.tensor(o["weights"], dtype=torch.float64), num_generations=GENERATIONS,
        multi_objective_aggregation=o["aggregation"], scale_rewards=o["scaleRewards"],
        mask_truncated_completions=o["maskTruncated"], eos_token_ids=[EOS], _tokenizer=SimpleNamespace(pad_token_id=PAD),
        pad_to_multiple_of=None, num_iterations=o["iterations"], use_vllm=False, vllm_importance_sampling_correction=False,
        beta=o["beta"], loss_type=o["loss"], importance_sampling_level=o["importanceSamplingLevel"], epsilon_low=o["epsilon"],
        epsilon_high=o["epsilonHigh"] if o["epsilonHigh"] is not None else o["epsilon"], max_completion_length=LIMIT,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, _entropy_bonus_enabled=False, aux_loss_enabled=False,
        current_gradient_accumulation_steps=1, log_multimodal=False,
        args=SimpleNamespace(
            per_device_train_batch_size=len(ids), steps_per_generation=1, gradient_accumulation_steps=1, delta=o["delta"],
            use_bias_correction_kl=o["biasCorrection"], gradient_checkpointing_kwargs=None,
        ),
        _metrics={"train": defaultdict(list)}, _logs=defaultdict(lambda: defaultdict(list)) | {n: [] for n in ("prompt", "completion", "advantages")} | {"rewards": defaultdict(list)},
        _pending_extra_logs={}, _pending_metrics={},
        _get_per_token_logps_and_entropies=lambda of, *_, **__: (ref if of is ref_model else old, None, None),
    )  # fmt: skip


DEFAULT = dict(
    loss="dapo", beta=0.0, epsilon=0.2, epsilonHigh=None, delta=None, scaleRewards="group", iterations=1, weights=[1.0],
    importanceSamplingLevel="token", biasCorrection=True, maskTruncated=False, aggregation="sum_then_normalize",
)  # fmt: skip
CASES = [
    {},
    dict(iterations=2),
    dict(iterations=2, beta=0.04, epsilonHigh=0.28),
    dict(loss="grpo", iterations=2, beta=0.1, biasCorrection=False, maskTruncated=True),
    dict(loss="grpo", scaleRewards="none"),
    dict(loss="dr_grpo", scaleRewards="none", iterations=3, delta=1.5),
    dict(loss="dapo", maskTruncated=True, scaleRewards="batch", beta=0.02),
    dict(loss="cispo", epsilonHigh=1.3, iterations=2, beta=0.05),
    dict(loss="luspo", importanceSamplingLevel="sequence", iterations=2, epsilon=0.1),
    dict(loss="dapo", importanceSamplingLevel="sequence", iterations=2, beta=0.3, epsilon=0.1, maskTruncated=True),
    dict(loss="cispo", importanceSamplingLevel="sequence", epsilonHigh=1.05, iterations=2),
    dict(weights=[1.0, 0.5]),
    dict(weights=[2.0, 0.5], aggregation="normalize_then_sum", iterations=2),
]


def rewards_of(o: dict) -> torch.Tensor:
    rewards = uniform(-1, 2, GENERATIONS * GROUPS, len(o["weights"]))
    rewards[:GENERATIONS, 0] = 0.5  # a group whose completions are alike
    if len(o["weights"]) > 1:
        rewards[1, 1] = torch.nan  # this one cannot be scored by the second alone
        rewards[6] = torch.nan  # and this one by neither
    return rewards


CLASSES = 11
TEMPERED = [
    dict(temperature=0.6),
    dict(temperature=1.5, iterations=2, beta=0.1),
    dict(temperature=0.9, loss="cispo", epsilonHigh=1.3, iterations=2, beta=0.05, biasCorrection=False),
    dict(temperature=2.0, loss="luspo", importanceSamplingLevel="sequence", iterations=2, epsilon=0.1),
]


def tempered(changed: dict) -> dict:
    """A case of logits: each token of a completion is one of CLASSES, of the model, of the one before and of the reference."""
    o = DEFAULT | changed
    count = sum(LENGTHS)
    logits = uniform(-3, 3, count, CLASSES)
    near = [logits + uniform(-0.4, 0.4, count, CLASSES) for _ in range(2)]
    targets = torch.randint(0, CLASSES, (count,), generator=random)
    softmax = lambda of: selective_log_softmax(of, targets, temperature=o["temperature"])  # noqa: E731
    logps = lambda of: padded(list(softmax(of).split(LENGTHS)))  # noqa: E731
    old, ref = map(logps, near)
    trainer = trainer_of(o, ref, old, rewards_of(o))
    made = GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": ""} for _ in LENGTHS])
    logits.requires_grad_()
    now = logps(logits)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (now, torch.zeros_like(now), None)
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, made)
    loss.backward()
    return dict(
        settings=o,
        targets=targets.tolist(),
        now=logits.tolist(),
        old=near[0].tolist() if "old_per_token_logps" in made else None,
        reference=near[1].tolist() if o["beta"] != 0 else None,
        advantages=made["advantages"].tolist(),
        loss=loss.item(),
        slopes=logits.grad.tolist(),
    )


def main() -> None:
    cases = []
    for changed in CASES:
        o = DEFAULT | changed
        rows = [uniform(-4, -0.05, n) for n in LENGTHS]
        old = [(row + uniform(-0.5, 0.5, len(row))).clamp(max=-0.01) for row in rows]
        ref = [(row + uniform(-1, 1, len(row))).clamp(max=-0.01) for row in rows]
        rewards = rewards_of(o)
        trainer = trainer_of(o, padded(ref), padded(old), rewards)
        inputs = [{"prompt": ""} for _ in LENGTHS]
        made = GRPOTrainer._generate_and_score_completions(trainer, inputs)
        now = padded(rows).requires_grad_()
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (now, torch.zeros_like(now), None)
        loss = GRPOTrainer._compute_loss(trainer, trainer.model, made)
        loss.backward()
        cut = lambda t: [row[:n].tolist() for row, n in zip(t, LENGTHS, strict=True)]  # noqa: E731
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        cases.append(
            dict(
                settings=o,
                ended=ENDED,
                rewards=[[None if r != r else r for r in row] for row in rewards.tolist()],
                now=cut(now.detach()),
                old=cut(padded(old)) if "old_per_token_logps" in made else None,
                reference=cut(padded(ref)) if o["beta"] != 0 else None,
                advantages=made["advantages"].tolist(),
                mask=cut(made["completion_mask"]),
                loss=loss.item(),
                slopes=cut(now.grad),
                metrics=metrics,
            )
        )
    made = dict(generations=GENERATIONS, limit=LIMIT, cases=cases, lengths=LENGTHS, tempered=[tempered(of) for of in TEMPERED])
    (HERE / "grpo.json").write_text(json.dumps(made) + "\n")


main()
