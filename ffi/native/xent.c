// Cross-entropy of rows of logits, and its gradient in their place.
#include "native.h"
#include <math.h>

typedef struct {
  float *logits, *loss;
  const int32_t *targets;
  const float *weights;
  int32_t *hit;
  int stride, classes, grad;
} xent_args;

static void xent_range(void *context, int64_t begin, int64_t end) {
  const xent_args *a = context;
  for (int64_t t = begin; t < end; t++) {
    float *z = a->logits + t * a->stride, top[LANES], acc[LANES] = {0};
    int target = a->targets[t], i = 0;
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
    for (i = 0; i < a->classes; i++) z[i] = weight * fast_exp(z[i] - lse);
    z[target] -= weight;
    for (i = a->classes; i < a->stride; i++) z[i] = 0;
  }
}

void xent(float *logits, const int32_t *targets, const float *weights, float *loss, int32_t *hit, int rows, int stride,
          int classes, int grad) {
  parallel(rows, 1, xent_range, &(xent_args){logits, loss, targets, weights, hit, stride, classes, grad});
}
