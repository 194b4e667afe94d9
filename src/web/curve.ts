// What an adapter has measured at its steps, in bounded size: when a curve is full, neighbouring points become their mean. The
// server and the page keep curves by the same rules.

/** Of a step: its loss, its gradient norm and its tokens a second; null where one is not known. */
export type Point = readonly [step: number, loss: number | null, gradNorm: number | null, tokensPerSecond: number | null];
export const MEASURES = ["loss", "gradNorm", "tokensPerSecond"] as const;
export type Measure = (typeof MEASURES)[number];

type Bin = {
  readonly index: number;
  step: number;
  readonly sums: [number, number, number];
  readonly counts: [number, number, number];
};

export class Curve {
  #bins: Bin[] = [];

  /** `stride`: steps that a point stands for, at first. */
  constructor(
    private readonly most: number,
    public stride = 1,
  ) {}

  /** A step that was made before is made again after a checkpoint: what followed it is gone. */
  add(point: Point): void {
    const [step] = point;
    const index = this.#indexOf(step);
    while (this.#bins.length > 0 && (this.#bins.at(-1)!.index > index || this.#bins.at(-1)!.step >= step)) this.#bins.pop();
    this.#put(index, point);
    while (this.#bins.length > this.most) this.#halve();
  }

  get points(): Point[] {
    return this.#bins.map(({ step, sums, counts }) => {
      const mean = (i: 0 | 1 | 2) => (counts[i] === 0 ? null : short(sums[i] / counts[i]));
      return [step, mean(0), mean(1), mean(2)];
    });
  }

  get length(): number {
    return this.#bins.length;
  }

  /** The same in at most `most` points. */
  reduced(most: number): Curve {
    if (this.#bins.length <= most) return this;
    const smaller = new Curve(most, this.stride);
    for (const point of this.points) smaller.add(point);
    return smaller;
  }

  #indexOf(step: number): number {
    return Math.floor(Math.max(0, step - 1) / this.stride);
  }

  #put(index: number, [step, ...values]: Point): void {
    let last = this.#bins.at(-1);
    if (last?.index !== index) {
      last = { index, step, sums: [0, 0, 0], counts: [0, 0, 0] };
      this.#bins.push(last);
    }
    last.step = step;
    for (const [i, value] of values.entries())
      if (value !== null) {
        last.sums[i as 0 | 1 | 2] += value;
        last.counts[i as 0 | 1 | 2]++;
      }
  }

  #halve(): void {
    this.stride *= 2;
    const joined: Bin[] = [];
    for (const bin of this.#bins) {
      const index = this.#indexOf(bin.step);
      const last = joined.at(-1);
      if (last?.index !== index) {
        joined.push({ ...bin, index });
        continue;
      }
      last.step = bin.step;
      for (const i of [0, 1, 2] as const) {
        last.sums[i] += bin.sums[i];
        last.counts[i] += bin.counts[i];
      }
    }
    this.#bins = joined;
  }
}

/** Four digits are more than a screen shows. */
const short = (value: number): number => Number(value.toPrecision(5));
