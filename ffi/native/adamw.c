// Norms of gradients, and the steps of AdamW and SGD.
#include "native.h"
#include <math.h>

#define BLOCK 4096 // elements that a thread takes at a time
#define FACTOR 128 // elements of a block that are of one factor (src/methods/layout.ts)

// The sum of squares of a matrix, row by row.
float grad_norm(const float *grads, int rows, int columns) {
  double total = 0;
  for (int64_t row = 0; row < rows; row++) total += dot(grads + row * columns, grads + row * columns, columns);
  return (float)total;
}

typedef struct {
  float *params, *grads, *m, *v, coefficient;
  const int *factors;
  const float *table;
} adamw_args;

static void adamw_range(void *context, int64_t begin, int64_t end) {
  const adamw_args *a = context;
  float rest1 = a->table[2], beta2 = a->table[3], rest2 = a->table[4], eps = a->table[5];
  float decay = a->table[6], root = sqrtf(a->table[8]);
  for (int64_t first = begin; first < end; first += FACTOR) {
    float lr = a->factors[first / FACTOR] ? a->table[10] : a->table[1], step = lr / a->table[7];
    int64_t last = first + FACTOR < end ? first + FACTOR : end;
    for (int64_t i = first; i < last; i++) {
      float g = a->grads[i] * a->coefficient;
      float m = a->m[i] = fused(g - a->m[i], rest1, a->m[i]);
      float v = a->v[i] = fused(beta2, a->v[i], rest2 * g * g);
      a->params[i] = fused(a->params[i], fused(-lr, decay, 1), -(step * m / (sqrtf(v) / root + eps)));
      a->grads[i] = 0;
    }
  }
}

// m is the buffer of the momentum. It begins as zeros, so that it is the gradient itself after the first step, as PyTorch has
// it.
static void sgd_range(void *context, int64_t begin, int64_t end) {
  const adamw_args *a = context;
  float momentum = a->table[2], nesterov = a->table[3], decay = a->table[6];
  for (int64_t first = begin; first < end; first += FACTOR) {
    float lr = a->factors[first / FACTOR] ? a->table[10] : a->table[1];
    int64_t last = first + FACTOR < end ? first + FACTOR : end;
    for (int64_t i = first; i < last; i++) {
      float d = fused(a->grads[i], a->coefficient, decay * a->params[i]);
      float m = a->m[i] = fused(momentum, a->m[i], d);
      a->params[i] = fused(-lr, nesterov != 0 ? fused(momentum, m, d) : m, a->params[i]);
      a->grads[i] = 0;
    }
  }
}

// One step of one adapter's n parameters; `table` is its row of the kernel's table, whose first number says which optimizer's.
void adamw_step(float *params, float *grads, float *m, float *v, int64_t n, const int *factors, const float *table) {
  adamw_args a = {params, grads, m, v, table[9], factors, table};
  if (table[0] == 0) return;
  parallel(n, BLOCK, table[0] == 2 ? sgd_range : adamw_range, &a);
}
