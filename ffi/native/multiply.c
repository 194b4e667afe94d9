// Rows times a number that lies on the device.
#include "native.h"

typedef struct {
  const float *x;
  float *y, factor;
} multiply_args;

static void rows_multiply_range(void *context, int64_t begin, int64_t end) {
  const multiply_args *a = context;
  for (int64_t i = begin; i < end; i++) a->y[i] = a->x[i] * a->factor;
}
void rows_multiply(const float *x, const float *factor, float *y, int rows, int width) {
  parallel((int64_t)rows * width, 4096, rows_multiply_range, &(multiply_args){x, y, *factor});
}
