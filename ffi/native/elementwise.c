// Multiples of values, element by element.
#include "native.h"

typedef struct {
  float *y, factor;
} elementwise_args;

static void multiply_range(void *context, int64_t begin, int64_t end) {
  const elementwise_args *a = context;
  for (int64_t i = begin; i < end; i++) a->y[i] *= a->factor;
}
void multiply(float *x, float factor, int64_t size) {
  parallel(size, 4096, multiply_range, &(elementwise_args){x, factor});
}
