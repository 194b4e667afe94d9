// Cross-entropy of rows of logits, and its gradient in their place.
#include "native.h"
#include <math.h>

typedef struct {
  float *logits, *loss;
  const int32_t *targets;
  const float *weights, *sharpness;
  int32_t *hit;
  int stride, classes, grad;
  float scale, cap; // cap: 0 for none
} xent_args;

// From the head's outputs to logits, whose inverse temperature is `sharp`.
static void shape(const xent_args *a, float *z, float sharp) {
  if (a->scale != 1.0f)
    for (int i = 0; i < a->classes; i++) z[i] *= a->scale;
  if (a->cap > 0)
    for (int i = 0; i < a->classes; i++) z[i] = a->cap * tanhf(z[i] / a->cap);
  if (sharp != 1.0f)
    for (int i = 0; i < a->classes; i++) z[i] *= sharp;
}

// From the gradient of logit z to that of the head's output.
static inline float unshaped(const xent_args *a, float gradient, float z, float sharp) {
  float share = a->cap > 0 ? z / sharp / a->cap : 0;
  return gradient * sharp * a->scale * fused(-share, share, 1.0f);
}

WIDE static void xent_range(void *context, int64_t begin, int64_t end) {
  const xent_args *a = context;
  for (int64_t t = begin; t < end; t++) {
    float *z = a->logits + t * a->stride, top[LANES], acc[LANES] = {0};
    float sharp = a->sharpness[t];
    int target = a->targets[t], i = 0;
    shape(a, z, sharp);
    float chosen = z[target];
    for (int l = 0; l < LANES; l++) top[l] = -INFINITY;
    for (; i + LANES <= a->classes; i += LANES)
      for (int l = 0; l < LANES; l++) top[l] = z[i + l] > top[l] ? z[i + l] : top[l];
    float max = -INFINITY;
    for (int l = 0; l < LANES; l++) max = top[l] > max ? top[l] : max;
    for (; i < a->classes; i++) max = z[i] > max ? z[i] : max;
    int first = 0; // the first largest: an earlier equal logit wins over the target, as in argmax
    while (first < target && z[first] != max) first++;
    a->hit[t] = chosen == max && first == target;

    for (i = 0; i + LANES <= a->classes; i += LANES)
      for (int l = 0; l < LANES; l++) acc[l] += fast_exp(z[i + l] - max);
    for (int l = 0; i < a->classes; i++, l++) acc[l] += fast_exp(z[i] - max);
    float lse = max + logf(lanes_sum(acc));
    a->loss[t] = lse - chosen;
    if (!a->grad) continue;
    float weight = a->weights[t];
    if (a->scale != 1.0f || a->cap > 0 || sharp != 1.0f) {
      for (i = 0; i < a->classes; i++) z[i] = unshaped(a, weight * fast_exp(z[i] - lse), z[i], sharp);
      z[target] -= unshaped(a, weight, chosen, sharp);
    } else {
      for (i = 0; i < a->classes; i++) z[i] = weight * fast_exp(z[i] - lse);
      z[target] -= weight;
    }
    for (i = a->classes; i < a->stride; i++) z[i] = 0;
  }
}

void xent(float *logits, const int32_t *targets, const float *weights, const float *sharpness, float *loss, int32_t *hit,
          int rows, int stride, int classes, int grad, float scale, float cap) {
  parallel(rows, 1, xent_range,
           &(xent_args){logits, loss, targets, weights, sharpness, hit, stride, classes, grad, scale, cap});
}
