// Norms of gradients and the AdamW step.
#include "native.h"
#include <math.h>

#define BLOCK 4096 // elements that a thread takes at a time

// The sum of squares of a matrix, row by row: rows and columns of zeros change no bit of it.
float grad_norm(const float *grads, int rows, int columns) {
  double total = 0;
  for (int64_t row = 0; row < rows; row++) total += dot(grads + row * columns, grads + row * columns, columns);
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

// One step of one adapter's n parameters; `table` is its row of the kernel's table.
void adamw_step(float *params, float *grads, float *m, float *v, int64_t n, const float *table) {
  adamw_args a = {params, grads, m, v, table[8], table};
  parallel(n, BLOCK, adamw_range, &a);
}
