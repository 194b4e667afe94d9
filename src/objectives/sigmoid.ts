// The functions that preferences are measured by, with their derivatives, at any argument without overflow.

export const sigmoid = (x: number): number => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

/** log(1 / (1 + e^-x)) */
const logSigmoid = (x: number): number => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));

export type Measured = { readonly value: number; readonly gradient: number };

/** How wrong a margin is, and the derivative by it; a share `smoothing` of the labels is taken to be the wrong way round. */
export const sigmoidLoss = (margin: number, smoothing: number): Measured => ({
  value: -(1 - smoothing) * logSigmoid(margin) - smoothing * logSigmoid(-margin),
  gradient: -(1 - smoothing) * sigmoid(-margin) + smoothing * sigmoid(margin),
});

export const hingeLoss = (margin: number): Measured => ({ value: Math.max(0, 1 - margin), gradient: margin < 1 ? -1 : 0 });

/** The other losses count no label as the wrong way round. */
export const smoothingFault = ({ loss, labelSmoothing }: { readonly loss: string; readonly labelSmoothing: number }) =>
  loss !== "sigmoid" && labelSmoothing > 0 ? `has label_smoothing, which loss "${loss}" does not know; leave one out` : null;
