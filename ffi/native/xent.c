// Cross-entropy of rows of logits, scaled and capped where a model's are, and its gradient in their place.
#include "native.h"
#include <math.h>

typedef struct {
  float *logits, *loss;
  const int32_t *targets;
  const float *weights;
  int32_t *hit;
  int stride, classes, grad;
  float scale, cap;
} xent_args;

// Of all that is not the identity: z = scale z, or cap tanh(scale z / cap).
static void shape_logits(float *z, const xent_args *a) {
  if (a->cap > 0) {
    for (int i = 0; i < a->classes; i++) z[i] = a->cap * fast_tanh(a->scale * z[i] / a->cap);
  } else {
    for (int i = 0; i < a->classes; i++) z[i] *= a->scale;
  }
}

static void xent_range(void *context, int64_t begin, int64_t end) {
  const xent_args *a = context;
  for (int64_t t = begin; t < end; t++) {
    float *z = a->logits + t * a->stride, top[LANES], acc[LANES] = {0};
    int target = a->targets[t], i = 0, shaped = a->cap > 0 || a->scale != 1.0f;
    if (shaped) shape_logits(z, a);
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
    if (!shaped) {
      for (i = 0; i < a->classes; i++) z[i] = weight * fast_exp(z[i] - lse);
      z[target] -= weight;
    } else {
      float rate = a->cap > 0 ? 1.0f / a->cap : 0.0f; // by a logit l: dz / dl = scale (1 - (z / cap)^2)
      float slope = 1.0f - chosen * rate * chosen * rate;
      for (i = 0; i < a->classes; i++)
        z[i] = weight * a->scale * (1.0f - z[i] * rate * z[i] * rate) * fast_exp(z[i] - lse);
      z[target] -= weight * a->scale * slope;
    }
    for (i = a->classes; i < a->stride; i++) z[i] = 0;
  }
}

void xent(float *logits, const int32_t *targets, const float *weights, float *loss, int32_t *hit, int rows, int stride,
          int classes, int grad, float scale, float cap) {
  parallel(rows, 1, xent_range, &(xent_args){logits, loss, targets, weights, hit, stride, classes, grad, scale, cap});
}
