// "Did you mean": the nearest of some names, or what others call the same.

/** Keys of PEFT, transformers and those who build on them, and ours. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  r: "rank",
  lora_r: "rank",
  lora_rank: "rank",
  lora_alpha: "alpha",
  lora_dropout: "dropout",
  target_modules: "targets",
  lora_target_modules: "targets",
  use_rslora: "rslora",
  use_dora: "method",
  init_lora_weights: "init",
  loraplus_lr_ratio: "lora_plus_ratio",
  optim: "optimizer",
  lr: "learning_rate",
  lr_scheduler: "scheduler",
  lr_scheduler_type: "scheduler",
  warmup_ratio: "warmup",
  warmup_steps: "warmup",
  num_epochs: "epochs",
  num_train_epochs: "epochs",
  max_steps: "steps",
  micro_batch_size: "batch_size",
  per_device_train_batch_size: "batch_size",
  gradient_accumulation_steps: "accumulation",
  max_seq_length: "max_length",
  sequence_len: "max_length",
  eval_steps: "eval_every",
  early_stopping_patience: "patience",
  val_set_size: "split",
  base_model: "path",
  output_dir: "output",
};

/** Edit distance with swaps of neighbours (Damerau and Levenshtein, restricted). */
export function distance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      row.push(Math.min(rows[i - 1]![j]! + 1, row[j - 1]! + 1, rows[i - 1]![j - 1]! + same));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        row[j] = Math.min(row[j]!, rows[i - 2]![j - 2]! + 1);
    }
    rows.push(row);
  }
  return rows[a.length]![b.length]!;
}

/** The name nearest to `word`, if one is near enough to have been meant. */
export function nearest(word: string, names: readonly string[]): string | null {
  const known = ELSEWHERE[word.toLowerCase()];
  if (known !== undefined && names.includes(known)) return known;
  const short = word.slice(0, 64).toLowerCase();
  const ranked = names.map((name) => ({ name, far: distance(short, name.toLowerCase()) })).sort((a, b) => a.far - b.far);
  const best = ranked[0];
  return best && best.far <= Math.max(1, Math.floor(best.name.length / 3)) ? best.name : null;
}
