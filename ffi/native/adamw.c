// Norms of gradients and the AdamW step, per adapter.
#include "native.h"
#include <math.h>

#define BLOCK 4096 // elements of a partial sum: fixed, so that the sum does not depend on the threads

// The sum of squares of n gradients.
float grad_norm(const float *grads, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i += BLOCK) {
    int count = n - i < BLOCK ? (int)(n - i) : BLOCK;
    total += dot(grads + i, grads + i, count);
  }
  return (float)total;
}

typedef struct {
  float *params, *grads, *m, *v, coefficient;
  const float *table;
} adamw_args;

static void adamw_range(void *context, int64_t begin, int64_t end) {
  const adamw_args *a = context;
  float lr = a->table[1], beta1 = a->table[2], beta2 = a->table[3], eps = a->table[4], decay = a->table[5];
  float step = lr / a->table[6], root = sqrtf(a->table[7]);
  for (int64_t i = begin; i < end; i++) {
    float g = a->grads[i] * a->coefficient;
    float m = a->m[i] = beta1 * a->m[i] + (1 - beta1) * g;
    float v = a->v[i] = beta2 * a->v[i] + (1 - beta2) * g * g;
    a->params[i] = a->params[i] * (1 - lr * decay) - step * m / (sqrtf(v) / root + eps);
    a->grads[i] = 0;
  }
}

// One step of one adapter's n parameters; `table` is its row of the kernel's table, `squares` its sum of squared gradients.
void adamw_step(float *params, float *grads, float *m, float *v, int64_t n, const float *table, float squares) {
  float norm = sqrtf(squares), max = table[8], coefficient = 1;
  if (max > 0 && max / (norm + 1e-6f) < 1) coefficient = max / (norm + 1e-6f);
  adamw_args a = {params, grads, m, v, coefficient, table};
  parallel(n, BLOCK, adamw_range, &a);
}
